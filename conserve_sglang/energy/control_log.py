"""The controller's log: each observation with the moves it led to, one JSON object a line.

The first line has the settings. Since the law reads nothing but its observations, a log played
through it again gives the same moves; `replay` says where it does not.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.power.control import ControlSettings, PowerController
from conserve_sglang.power.observation import CapMove, Move, Observation

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line: what was seen, and the moves as they were logged."""

    number: int
    seen: Observation
    moves: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A line on which the law of today moves otherwise."""

    number: int
    at_s: float
    logged: tuple[Mapping[str, Any], ...]
    replayed: tuple[Mapping[str, Any], ...]


class ControlLog:
    """Writes the log, line by line, each whole before the next begins.

    `write` gets one line without its end. Nothing is written where nothing is worth keeping:
    observations without a move are kept too, for a replay needs them.
    """

    def __init__(self, write: Callable[[str], None], settings: ControlSettings) -> None:
        self._write = write
        write(json.dumps({"version": VERSION, "settings": asdict(settings)}))

    def add(self, seen: Observation, moves: Iterable[Move]) -> None:
        """One period."""
        moved = [move_as_json(move) for move in moves]
        self._write(json.dumps({"seen": _plain(asdict(seen)), "moves": moved}))


def move_as_json(move: Move) -> dict[str, Any]:
    """A move as logs and endpoints tell it."""
    kind = "cap" if isinstance(move, CapMove) else "admission"
    told: dict[str, Any] = _plain({"kind": kind, **asdict(move)})
    return told


def read_log(path: Path) -> tuple[ControlSettings, Iterator[Step]]:
    """The settings and the steps of a log. Raises `ConfigError` with the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not lines:
        raise ConfigError(f"{path}: is empty; a log of the power controller begins with settings")
    head = _decoded(path, 1, lines[0], _Head)
    if head.version != VERSION:
        raise ConfigError(f"{path}: version {head.version} is not one this reads: {VERSION}")
    return head.settings, _steps(path, lines)


def replay(path: Path) -> tuple[int, list[Difference]]:
    """Play a log through the law again: how many observations, and where it moves otherwise."""
    settings, steps = read_log(path)
    controller = PowerController(settings)
    differing, count = [], 0
    for step in steps:
        count += 1
        moves = tuple(move_as_json(move) for move in controller.handle(step.seen))
        if moves != step.moves:
            differing.append(
                Difference(
                    number=step.number, at_s=step.seen.at_s, logged=step.moves, replayed=moves
                )
            )
    return count, differing


class _Head(msgspec.Struct):
    version: int
    settings: ControlSettings


class _Line(msgspec.Struct):
    seen: Observation
    moves: tuple[dict[str, Any], ...]


def _steps(path: Path, lines: list[str]) -> Iterator[Step]:
    for number, line in enumerate(lines[1:], 2):
        if number == len(lines) and not line.endswith("}"):
            return  # the writer was ended in the middle of its last line
        decoded = _decoded(path, number, line, _Line)
        yield Step(number=number, seen=decoded.seen, moves=decoded.moves)


def _decoded(path: Path, number: int, line: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}, line {number}: {error}") from error


def _plain(value: Any) -> Any:
    """Enums by their values, all the way down."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
