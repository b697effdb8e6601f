"""The metric and label names in a PromQL expression."""

import re
from collections.abc import Iterator

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"' + r"|'(?:[^'\\]|\\.)*'")
_MATCHERS = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGES = re.compile(r"\[[^\]]*\]")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "on", "group_left", "group_right", "le"}


def metrics_in(expression: str) -> set[str]:
    """Names that stand where a metric does: no function, keyword or label."""
    bare = _STRINGS.sub("", expression)
    for pattern in (_MATCHERS, _GROUPING, _RANGES):
        bare = pattern.sub(" ", bare)
    names = set()
    for match in _NAME.finditer(bare):
        before = bare[: match.start()]
        is_number = bool(re.search(r"[0-9.]$", before))
        is_call = bare[match.end() :].lstrip().startswith("(")
        if not is_number and not is_call and match[0] not in _WORDS:
            names.add(match[0])
    return names


def labels_in(expression: str) -> set[str]:
    """Names that stand in matchers and in groupings."""
    return set(_labels(_STRINGS.sub('""', expression)))


def _labels(bare: str) -> Iterator[str]:
    for matchers in _MATCHERS.findall(bare):
        for matcher in filter(None, matchers.split(",")):
            yield re.split(r"=~|!~|!=|=", matcher)[0].strip()
    for _, names in _GROUPING.findall(bare):
        for name in filter(None, names.split(",")):
            yield name.strip()
