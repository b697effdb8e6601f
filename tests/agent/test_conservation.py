"""A counter that ticks, a known power trace, and the work that drew it: the parts are the whole.

The agent's part runs in a process of its own with NVIDIA's bindings over the stand-in library; it
reads a phase log written as the trace has it. The integral of the trace is known exactly.
"""

import time
from pathlib import Path

import pytest

from tests.agent.maps import a_gpu_map
from tests.energy.standin import Machine, build

TRACE = ((0.0, 70.0), (0.5, 400.0), (1.7, 250.0), (3.0, 70.0))
PREFILL_J, DECODE_J = 1.2 * 400, 1.3 * 250

RUN = """
import asyncio, json, time
from pathlib import Path
from conserve_sglang.agent.energy import EnergyPart
from conserve_sglang.agent.here import part_of
from conserve_sglang.core.phase_log import (
    Phase, encode_decode, encode_extend, encode_opened, encode_work)
from conserve_sglang.tiermap.load import parse_tier_map

FOLDER, END_S = Path({folder!r}), 4.0

def lines(at_s):
    yield encode_opened(1, at_s, 1)
    yield encode_extend(at_s + 0.5, at_s + 1.7, [encode_work(("a", 1), Phase.PREFILL, 900, 0)])
    begin = at_s + 1.7
    while begin < at_s + 2.99:
        end = min(begin + 0.25, at_s + 3.0)
        works = [encode_work(("a", 1), Phase.DECODE, 30, 900),
                 encode_work(("b", 2), Phase.DECODE, 10, 400)]
        yield encode_decode(begin, end, 30, works)
        begin = end

async def main():
    tier_map = parse_tier_map({tiers!r}, source="map.yaml", folder=FOLDER)
    here = part_of(tier_map, "127.0.0.1", FOLDER)
    # The trace's time 0 is wall time; phase logs have the monotonic clock.
    at_s = {begin_s!r} - time.time() + time.monotonic()
    await asyncio.sleep(max(0.0, at_s - time.monotonic()))
    part = EnergyPart(here)
    await part.start()
    began = {{name: r.joules for name, r in part._readings.items()}}
    begin_s = time.monotonic() - at_s
    here.phase_log(here.workers[0]).write_bytes(b"".join(lines(at_s)))
    while part._ledger.settled_to_s < at_s + END_S:
        await asyncio.sleep(0.05)
    told = part.told()
    told["from_s"], told["to_s"] = begin_s, part._ledger.settled_to_s - at_s
    await part.stop()
    print(json.dumps(told))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


def integral_j(from_s: float, to_s: float) -> float:
    ends = [start for start, _ in TRACE[1:]] + [1e9]
    return sum(
        watts * max(0.0, min(end, to_s) - max(start, from_s))
        for (start, watts), end in zip(TRACE, ends, strict=True)
    )


@pytest.mark.parametrize("meter", ["nvml", "zeus"])
def test_parts_sum_to_the_integral_within_a_hundredth(
    library: Path, tmp_path: Path, meter: str
) -> None:
    if meter == "zeus":
        pytest.importorskip("zeus")
    trace = ",".join(f"{at_s:g}:{watts:g}" for at_s, watts in TRACE)
    machine = Machine(library, tmp_path, demand=trace, tick_ms="20", range_w="100,700,700")
    begin_s = time.time() + 3.0
    machine.begin_at(begin_s)
    tiers = a_gpu_map(f"interval_s: 0.2, meter: {meter}")
    told = machine.evaluate(RUN.format(folder=str(tmp_path), tiers=tiers, begin_s=begin_s))
    expected = integral_j(told["from_s"], told["to_s"])
    phases: dict[str, float] = {}
    for _, _, phase, origin, split, joules in told["counters"]:
        assert (origin, split) == ("measured", "own")
        phases[phase] = phases.get(phase, 0.0) + joules
    assert sum(phases.values()) == pytest.approx(expected, rel=0.01)
    # One interval of 0.2 s straddles each step of power, and is split there by time.
    assert phases["prefill"] == pytest.approx(PREFILL_J, rel=0.1)
    assert phases["decode"] == pytest.approx(DECODE_J, rel=0.1)
    turns: dict[str, float] = {}
    for conversation, _, _, phase, _, _, joules in told["turns"]:
        if phase == "decode":
            turns[conversation] = turns.get(conversation, 0.0) + joules
    assert turns["a"] == pytest.approx(3 * turns["b"], rel=1e-6)
    assert sum(turns.values()) == pytest.approx(phases["decode"], rel=1e-6)
