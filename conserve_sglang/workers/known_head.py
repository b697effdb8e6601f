"""Heads that come again: of one connection they mostly differ in a few values.

A head that httptools has read is kept as the bytes around these values. Bytes that differ from it
in nothing but values of plain characters are read as it was, so they need not be read again.
"""

import re
from collections.abc import Set

Headers = list[tuple[bytes, bytes]]

_LENGTH = b"content-length"
_MAX_LENGTH_DIGITS = 15
_MAX_VALUE_BYTES = 1024
_VALUE = re.compile(rb"[!-~](?:[ -~]*[!-~])?")


class KnownHead:
    """The head of a message with a Content-Length. `match` reads another one like it.

    `headers` and `length` are those of the head matched last; `headers` is another list only if
    one of them is another.
    """

    __slots__ = ("_names", "_places", "_texts", "_values", "headers", "length")

    def __init__(
        self, texts: list[bytes], names: list[bytes], values: list[bytes], headers: Headers
    ) -> None:
        self._texts = texts  # around the values: one more than there are values
        self._names = names
        self._values = values
        self.headers = headers
        self.length = 0
        named = [name for name, _ in headers]
        self._places = [named.index(name) if name in named else None for name in names]

    def match(self, data: bytes) -> int:
        """Where the body begins, -1 if this is not such a head."""
        texts = self._texts
        text = texts[0]
        at = len(text)
        if data[:at] != text:
            return -1
        for number, known in enumerate(self._values):
            text = texts[number + 1]
            end = at + len(known)
            if data[end : end + len(text)] != text:  # it is longer, or shorter
                end = data.find(b"\r", at)
                if not data.startswith(text, end):
                    return -1
            value = data[at:end]
            if value != known and not self._takes(number, value):
                return -1
            at = end + len(text)
        return at

    def _takes(self, number: int, value: bytes) -> bool:
        """Take another value, if nothing about it is unusual."""
        name = self._names[number]
        if name == _LENGTH:
            if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
                return False
            self.length = int(value)
        elif len(value) > _MAX_VALUE_BYTES or _VALUE.fullmatch(value) is None:
            return False
        self._values[number] = value
        place = self._places[number]
        if place is not None:
            self.headers = headers = self.headers.copy()
            headers[place] = (name, value)
        return True


def known_head(data: bytes, headers: Headers, varying: Set[bytes]) -> KnownHead | None:
    """What is to be known of a message read as these headers (lower case), all of it and no more.

    `varying` are the headers whose values may differ, beside Content-Length; those that the
    message has twice may not. None where the head is unusual, or the body's length is not said.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    texts = [lines[0] + b"\r\n"]
    names: list[bytes] = []
    values: list[bytes] = []
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        name, bare = name.lower(), value.strip(b" \t")
        if name not in varying and name != _LENGTH:
            texts[-1] += line + b"\r\n"
            continue
        if name in names or not value.endswith(bare) or _VALUE.fullmatch(bare) is None:
            return None
        names.append(name)
        values.append(bare)
        texts[-1] += line[: len(line) - len(bare)]
        texts.append(b"\r\n")
    texts[-1] += b"\r\n"
    is_folded = any(line[:1] in (b" ", b"\t") for line in lines)
    is_plain = head.count(b"\n") == head.count(b"\r") == len(lines) - 1 and not is_folded
    if not end or not is_plain or _LENGTH not in names:
        return None
    length = values[names.index(_LENGTH)]
    if not length.isdigit() or int(length) != len(body):
        return None
    known = KnownHead(texts, names, values, headers)
    known.length = len(body)
    return known
