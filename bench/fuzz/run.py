"""Feeds one target, and looks out for crashes, hangs and growth."""

import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from bench.fuzz.mutate import Mutator
from bench.fuzz.seeds import PIECES
from bench.fuzz.targets import TARGETS
from bench.harness import rss_bytes

HANG_S = 2.0
WARM_UP = 0.2  # caches fill; growth is counted from there
MAX_SHOWN = 5


class Hung(Exception):
    """One input took longer than `HANG_S`."""


@dataclass(slots=True)
class Findings:
    """What became of the inputs of one target."""

    target: str
    num_inputs: int
    seconds: float = 0.0
    slowest_ms: float = 0.0
    grown_mib: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)
    num_failures: int = 0

    def to_record(self) -> dict[str, Any]:
        """For the results file."""
        return {
            "target": self.target,
            "inputs": self.num_inputs,
            "inputs_per_s": round(self.num_inputs / self.seconds),
            "slowest_ms": round(self.slowest_ms, 1),
            "grown_mib": round(self.grown_mib, 1),
            "outcomes": dict(sorted(self.outcomes.items())),
            "failures": self.num_failures,
            "shown": self.failures,
        }


def fuzz(target: str, num_inputs: int, seed: int) -> Findings:
    """Feed `num_inputs` made from `seed` to a target; every exception is a failure."""
    read, seeds = TARGETS[target]
    mutator = Mutator(seeds, PIECES, seed)
    findings = Findings(target, num_inputs)
    began = time.perf_counter()
    warm_at = int(num_inputs * WARM_UP)
    rss_mib = 0.0
    previous = signal.signal(signal.SIGALRM, _hung)
    try:
        for number in range(num_inputs):
            if number == warm_at:
                rss_mib = rss_bytes() / 2**20
            data = mutator.next()
            started = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, HANG_S)
            try:
                findings.outcomes[read(data)] += 1
            except Exception:
                _note(findings, data)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            findings.slowest_ms = max(findings.slowest_ms, 1e3 * (time.perf_counter() - started))
    finally:
        signal.signal(signal.SIGALRM, previous)
    findings.seconds = time.perf_counter() - began
    findings.grown_mib = rss_bytes() / 2**20 - rss_mib
    return findings


def _note(findings: Findings, data: bytes) -> None:
    findings.num_failures += 1
    if len(findings.failures) < MAX_SHOWN:
        why = traceback.format_exc().strip().splitlines()
        findings.failures.append({"input": repr(data[:2000]), "why": " | ".join(why[-3:])})


def _hung(number: int, frame: FrameType | None) -> None:
    raise Hung
