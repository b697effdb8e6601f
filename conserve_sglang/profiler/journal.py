"""Points on disk as they are measured, so that an interrupted run goes on where it was.

The first line says what was being measured; a file of something else is refused, not mixed in.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import msgspec

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.profiler.outcome import Clock, Outcome
from conserve_sglang.profiler.point import Point

VERSION = 1
FIRST_HANDOFF = "first_handoff"  # a line that is no point of a sweep


class _Head(msgspec.Struct, kw_only=True):
    version: int
    setup: dict[str, str]
    idle_w: float | None = None


class _Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    sweep: str
    took_s: float
    prepare_s: float = 0.0
    new_tokens: int = 0
    cached_tokens: int = 0
    batch: int = 1
    kv_tokens: int = 0
    seconds: float | None = None
    rel_ci: float | None = None
    num_repeats: int = 0
    watts: float | None = None
    clock: Clock = "scheduler"
    measured_kv_tokens: int | None = None
    failure: str | None = None


_head = msgspec.json.Decoder(_Head)
_line = msgspec.json.Decoder(_Line)


class Journal:
    """The file of one profile in the making. `outcomes` are those of earlier runs and this one, and
    so are `first_handoffs_s`: one for each start of the workers."""

    def __init__(self, path: Path, setup: Mapping[str, str]) -> None:
        self._path = path
        self._setup = dict(setup)
        self.idle_w: float | None = None
        self.outcomes: list[Outcome] = []
        self.first_handoffs_s: list[float] = []
        if path.exists():
            self._read()
        self.num_found = len(self.outcomes)

    def begin(self, idle_w: float | None) -> None:
        """Write the first line, unless the file goes on from an earlier run."""
        if self._path.exists():
            return
        self.idle_w = idle_w
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._append(_Head(version=VERSION, setup=self._setup, idle_w=idle_w))

    def add(self, outcome: Outcome) -> None:
        """Put one outcome on disk before going on."""
        point = outcome.point
        self.outcomes.append(outcome)
        self._append(
            _Line(
                sweep=point.sweep,
                new_tokens=point.new_tokens,
                cached_tokens=point.cached_tokens,
                batch=point.batch,
                kv_tokens=point.kv_tokens,
                took_s=round(outcome.took_s, 3),
                prepare_s=round(outcome.prepare_s, 3),
                seconds=outcome.seconds,
                rel_ci=outcome.rel_ci,
                num_repeats=outcome.num_repeats,
                watts=outcome.watts,
                clock=outcome.clock,
                measured_kv_tokens=outcome.kv_tokens,
                failure=outcome.failure,
            )
        )

    def add_first_handoff(self, seconds: float) -> None:
        """Put what the first handoff after a start took on disk."""
        self.first_handoffs_s.append(seconds)
        self._append(_Line(sweep=FIRST_HANDOFF, took_s=seconds, seconds=seconds))

    @property
    def first_handoff_s(self) -> float | None:
        """The median of those there are."""
        return median(self.first_handoffs_s) if self.first_handoffs_s else None

    def _append(self, line: msgspec.Struct) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        lines = self._path.read_bytes().split(b"\n")
        try:
            head = _head.decode(lines[0])
            for line in map(_line.decode, lines[1:-1]):
                if line.sweep != FIRST_HANDOFF:
                    self.outcomes.append(_outcome(line))
                elif line.seconds is not None:
                    self.first_handoffs_s.append(line.seconds)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"{self._path} is no journal of points ({error}); remove it, or choose another"
                " --out"
            ) from error
        if lines[-1]:  # cut off in the middle of a line: that point is measured again
            with self._path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in lines[:-1]))
        self._check(head)
        self.idle_w = head.idle_w

    def _check(self, head: _Head) -> None:
        if head.version != VERSION:
            raise ConfigError(f"{self._path} was written by another version; remove it")
        names = sorted(head.setup.keys() | self._setup.keys())
        differing = [
            f"  {name}: {head.setup.get(name)} there, {self._setup.get(name)} now"
            for name in names
            if head.setup.get(name) != self._setup.get(name)
        ]
        if differing:
            raise ConfigError(
                f"{self._path} holds points of another setup:\n" + "\n".join(differing)
                + "\nChoose another --out, or begin anew with --fresh."
            )  # fmt: skip


def _outcome(line: _Line) -> Outcome:
    point = Point(
        sweep=line.sweep,
        new_tokens=line.new_tokens,
        cached_tokens=line.cached_tokens,
        batch=line.batch,
        kv_tokens=line.kv_tokens,
    )
    return Outcome(
        point=point,
        took_s=line.took_s,
        prepare_s=line.prepare_s,
        seconds=line.seconds,
        rel_ci=line.rel_ci,
        num_repeats=line.num_repeats,
        watts=line.watts,
        clock=line.clock,
        kv_tokens=line.measured_kv_tokens,
        failure=line.failure,
    )
