"""Makes a new input of known ones: cut, doubled, spliced, spoiled. Repeatable by its seed.

Bytes changed at random are mostly refused at the first look. So most inputs stay JSON, with values
changed that stay what they were, a string, a number or a list, or that become something else in
places; and a request's length is set right again, most often where its body stayed JSON.
"""

import json
import re
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

MAX_BYTES = 40_000
STAYS_JSON = 0.8
KEEPS_KIND = 0.9  # of the changes to JSON
LENGTH_IS_RIGHT, LENGTH_IS_RIGHT_OF_BYTES = 0.9, 0.5
Place = tuple[Any, Any]  # a container, and a key of it


class Mutator:
    """An endless supply of inputs."""

    def __init__(self, seeds: Sequence[bytes], pieces: Sequence[bytes], seed: int) -> None:
        self._seeds = seeds
        self._pieces = pieces
        self._random = Random(seed)
        self._steps = (self._flip, self._cut, self._double, self._insert, self._splice)
        # The values of the seeds by kind and by key, as text so that each use is one of its own.
        self._of_kind: dict[type, list[str]] = {}
        self._of_key: dict[str, list[str]] = {}
        for text in _VALUES:
            self._of_kind.setdefault(type(json.loads(text)), []).append(text)
        for holder, key in _known(seeds):
            text = json.dumps(holder[key])
            self._of_kind.setdefault(type(holder[key]), []).append(text)
            if isinstance(holder, dict):
                self._of_key.setdefault(key, []).append(text)

    def next(self) -> bytes:
        """One seed after one to four changes."""
        seed = self._random.choice(self._seeds)
        parts = _json_in(seed)
        stays_json = bool(parts) and self._random.random() < STAYS_JSON
        if stays_json:
            part = self._random.choice(parts)
            other = self._other_json(seed[part])
            data = bytearray(seed[: part.start] + other + seed[part.stop :])
        else:
            data = bytearray(seed)
            for _ in range(self._random.choice((1, 1, 1, 2, 4))):
                self._random.choice(self._steps)(data)
        how_often = LENGTH_IS_RIGHT if stays_json else LENGTH_IS_RIGHT_OF_BYTES
        if b"\r\n\r\n" in seed and self._random.random() < how_often:
            data = _with_right_length(data)
        return bytes(data[:MAX_BYTES])

    def _other_json(self, text: bytes) -> bytes:
        root = json.loads(text)
        for _ in range(self._random.choice((1, 1, 2, 3))):
            places = list(_places(root))
            if places:
                self._change(*self._random.choice(places))
        return json.dumps(root).encode()

    def _change(self, holder: Any, key: Any) -> None:
        if self._random.random() >= KEEPS_KIND:
            holder[key] = json.loads(self._random.choice(_VALUES))
            return
        value = holder[key]
        step = self._random.randrange(6)
        if step == 0:
            del holder[key]
        elif step == 1 and isinstance(holder, list):
            holder.insert(self._random.randint(0, len(holder)), json.loads(json.dumps(value)))
        elif step == 2 and isinstance(value, list):
            self._random.shuffle(value)
        elif step >= 3 and isinstance(holder, dict) and key in self._of_key:
            holder[key] = json.loads(self._random.choice(self._of_key[key]))
        else:
            holder[key] = json.loads(self._random.choice(self._of_kind[type(value)]))

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


_VALUES = [
    "null", "true", "false", "0", "-1", "1", str(2**70), "0.5", "1e308", '""', '"x"',
    r'"é\ud800"', json.dumps("é" * 2000), "[]", "[[]]", "[1]", '["x"]', "{}", '{"type":"text"}',
    '{"type":"tool_use"}', '{"role":"tool"}', '[{"role":"user"}]', '{"a":{}}',
]  # fmt: skip
_LENGTH = re.compile(rb"content-length: \d+", re.IGNORECASE)
_EVENT = re.compile(rb"^data: (\{.*\})$", re.MULTILINE)


def _json_in(seed: bytes) -> list[slice]:
    """Where the JSON objects of a seed are: its body, or the data of its events."""
    at = seed.rfind(b"\r\n\r\n") + 4 if b"\r\n\r\n" in seed else 0
    if seed.startswith(b"{", at):
        return [slice(at, len(seed))]
    return [slice(*found.span(1)) for found in _EVENT.finditer(seed)]


def _known(seeds: Sequence[bytes]) -> Iterator[Place]:
    """Every place in the JSON of the seeds."""
    for seed in seeds:
        for part in _json_in(seed):
            yield from _places(json.loads(seed[part]))


def _places(value: Any) -> Iterator[Place]:
    """Every (container, key) in a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _with_right_length(data: bytearray) -> bytearray:
    head, blank, body = bytes(data).partition(b"\r\n\r\n")
    head = _LENGTH.sub(b"content-length: %d" % len(body), head, count=1)
    return bytearray(head + blank + body)
