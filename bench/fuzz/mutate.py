"""Makes a new input of known ones: cut, doubled, spliced, spoiled. Repeatable by its seed.

Bytes changed at random are mostly refused at the first look. So half of the inputs stay JSON, with
values of other types in places, and a request's length is set right again half of the time.
"""

import json
import re
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

MAX_BYTES = 40_000


class Mutator:
    """An endless supply of inputs."""

    def __init__(self, seeds: Sequence[bytes], pieces: Sequence[bytes], seed: int) -> None:
        self._seeds = seeds
        self._pieces = pieces
        self._random = Random(seed)
        self._steps = (self._flip, self._cut, self._double, self._insert, self._splice)

    def next(self) -> bytes:
        """One seed after one to four changes."""
        seed = self._random.choice(self._seeds)
        head, blank, body = seed.rpartition(b"\r\n\r\n")
        if self._random.random() < 0.5 and body.startswith(b"{"):
            data = bytearray(head + blank + self._other_json(body))
        else:
            data = bytearray(seed)
            for _ in range(self._random.choice((1, 1, 1, 2, 4))):
                self._random.choice(self._steps)(data)
        if head and self._random.random() < 0.5:
            data = _with_right_length(data)
        return bytes(data[:MAX_BYTES])

    def _other_json(self, body: bytes) -> bytes:
        root = json.loads(body)
        for _ in range(self._random.randint(1, 3)):
            places = list(_places(root))
            if places:
                holder, key = self._random.choice(places)
                holder[key] = json.loads(self._random.choice(_VALUES))
        return json.dumps(root).encode()

    def _at(self, data: bytearray) -> int:
        return self._random.randint(0, len(data))

    def _range(self, data: bytearray) -> slice:
        at = self._at(data)
        return slice(at, at + int(self._random.expovariate(0.05)) + 1)

    def _flip(self, data: bytearray) -> None:
        for _ in range(self._random.randint(1, 3)):
            if data:
                data[self._at(data) - 1] = self._random.getrandbits(8)

    def _cut(self, data: bytearray) -> None:
        del data[self._range(data)]

    def _double(self, data: bytearray) -> None:
        piece = data[self._range(data)]
        at = self._at(data)
        data[at:at] = piece

    def _insert(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._random.choice(self._pieces)

    def _splice(self, data: bytearray) -> None:
        other = self._random.choice(self._seeds)
        data[self._at(data) :] = other[self._random.randint(0, len(other)) :]


# As text, so that each use is a value of its own.
_VALUES = [
    "null", "true", "false", "0", "-1", str(2**70), "1e308", '""', '"x"', r'"é\ud800"',
    json.dumps("a" * 2000), "[]", "[[]]", "[1]", '["x"]', "{}", '{"type":"text"}',
    '{"type":"tool_use"}', '{"role":"tool"}', '[{"role":"user"}]', '{"a":{}}',
]  # fmt: skip
_LENGTH = re.compile(rb"content-length: \d+", re.IGNORECASE)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _with_right_length(data: bytearray) -> bytearray:
    head, blank, body = bytes(data).partition(b"\r\n\r\n")
    head = _LENGTH.sub(b"content-length: %d" % len(body), head, count=1)
    return bytearray(head + blank + body)
