"""Strict reading of YAML files: what is wrong, where, and what was probably meant."""

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from conserve_sglang.core.errors import TierMapError

Parts = Mapping[str, type[msgspec.Struct]]
"""The struct at each path of a file, list indices left out."""

WITH_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"unknown field `(.*)`")
_MISSING = re.compile(r"missing required field `(.*)`")
_INDEX = re.compile(r"\[\d+\]")


def read_text(path: Path) -> str:
    """A file's text; TierMapError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TierMapError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TierMapError(f"{path}: is not UTF-8 text: {error.reason}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a key given twice is an error instead of the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping whose keys are all different."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, source: str) -> object:
    """Decode a file's text; TierMapError says where it is not YAML."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise TierMapError(f"{source}{where}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise TierMapError(f"{source}: not valid YAML: {error}") from error


def explain(message: str, parts: Parts) -> str:
    """Turn msgspec's message into "path: what is wrong; what to do"."""
    match = WITH_PATH.match(message)
    what, path = (match["what"], match["path"] or "") if match else (message, "")
    if unknown := _UNKNOWN.search(what):
        return f"{_join(path, unknown[1])}: unknown field{_did_you_mean(path, unknown[1], parts)}"
    if missing := _MISSING.search(what):
        return f"{_join(path, missing[1])}: missing"
    return f"{path or 'the file'}: {what[0].lower()}{what[1:]}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _did_you_mean(path: str, name: str, parts: Parts) -> str:
    part = parts.get(_INDEX.sub("[]", path))
    names = part.__struct_fields__ if part else ()
    return suggest(name, names)


def suggest(name: str, names: Iterable[str]) -> str:
    """What may have been meant by a name that is not known."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""
