"""Which part of the simulator is off: errors by the kind of turn and by its phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.sim_fidelity.compare import Pair
from bench.sim_fidelity.live import LiveTurn
from bench.sim_fidelity.simulated import first_token_parts
from conserve_sglang.sim import PerfModel

Both = tuple[LiveTurn, LiveTurn]
"""A live turn and the same one simulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseError:
    """One phase of one kind of turn: medians in seconds, of |simulated - live| / live, and of the
    signed one. `told`: what of the simulated median the unit costs alone say, by part."""

    kind: str
    phase: str
    num_turns: int
    live_s: float
    simulated_s: float
    median_error: float
    bias: float
    told: Mapping[str, float]


def phase_errors(pairs: Sequence[Pair], perf: PerfModel) -> list[PhaseError]:
    """First token and the tokens after it, for each kind of turn there is.

    The first token of a local turn is its request and its prefill; of one through a prefiller its
    handoff too. Turns that the simulator placed in another way are left out.
    """
    found: list[PhaseError] = []
    for kind, both in sorted(_by_kind(pairs).items()):
        told = [first_token_parts(live, perf) for live, _ in both]
        parts = {name: median(one[name] for one in told) for name in told[0]}
        found.append(
            _error(kind, "first token", [(a.ttft_s, b.ttft_s) for a, b in both], parts),
        )
        later = [(_decoding_s(a), _decoding_s(b)) for a, b in both if a.output_tokens > 1]
        if later:
            found.append(_error(kind, "later tokens", later, {}))
    return found


def handoff_error(pairs: Sequence[Pair]) -> PhaseError | None:
    """A handoff by itself: first turns through a prefiller less first turns on one worker, both
    with nothing beside them. None without both kinds."""
    kinds = _by_kind([pair for pair in pairs if pair[0].is_lone])
    moved, local = kinds.get("turn 1, handed off"), kinds.get("turn 1, local")
    if not moved or not local:
        return None
    live_s, simulated_s = (
        median(both[side].ttft_s for both in moved) - median(both[side].ttft_s for both in local)
        for side in (0, 1)
    )
    error = simulated_s / live_s - 1 if live_s else 0.0
    return PhaseError(
        kind="turn 1, lone",
        phase="handoff",
        num_turns=len(moved),
        live_s=live_s,
        simulated_s=simulated_s,
        median_error=abs(error),
        bias=error,
        told={},
    )


def described(error: PhaseError) -> dict[str, Any]:
    """For the record, times in milliseconds."""
    return {
        "kind": error.kind,
        "phase": error.phase,
        "num_turns": error.num_turns,
        "live_ms": round(1e3 * error.live_s, 2),
        "simulated_ms": round(1e3 * error.simulated_s, 2),
        "median_error": round(error.median_error, 4),
        "bias": round(error.bias, 4),
        "told_ms": {name: round(1e3 * seconds, 2) for name, seconds in error.told.items()},
    }


def _by_kind(pairs: Sequence[Pair]) -> dict[str, list[Both]]:
    found: dict[str, list[Both]] = {}
    for live, simulated in pairs:
        for one, again in zip(live.conversations, simulated.conversations, strict=True):
            for index, both in enumerate(zip(one.turns, again.turns, strict=True)):
                is_moved = [turn.prefiller is not None for turn in both]
                if is_moved[0] == is_moved[1]:
                    which = "tail" if index else "turn 1"
                    kind = f"{which}, {'handed off' if is_moved[0] else 'local'}"
                    found.setdefault(kind, []).append(both)
    return found


def _decoding_s(turn: LiveTurn) -> float:
    return turn.e2e_s - turn.ttft_s


def _error(
    kind: str, phase: str, times: Sequence[tuple[float, float]], told: Mapping[str, float]
) -> PhaseError:
    signed = [simulated / live - 1 for live, simulated in times if live > 0]
    return PhaseError(
        kind=kind,
        phase=phase,
        num_turns=len(times),
        live_s=median(live for live, _ in times),
        simulated_s=median(simulated for _, simulated in times),
        median_error=median(map(abs, signed)),
        bias=median(signed),
        told=told,
    )
