"""One small run is the same, byte for byte, everywhere and always; changing it is a decision."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden_summary.json"
RUN = """
import json, random
from dataclasses import asdict
from conserve_sglang.sim import A40_QWEN3_0_6B, Simulation, Tally
from conserve_sglang.workload import mini_swe_conversations, poisson_arrivals, with_arrivals
from tests.sim.builders import a_deployment

rng = random.Random(20260601839)
plans = with_arrivals(mini_swe_conversations(40, rng), poisson_arrivals(1.0, rng))
tally = Tally(A40_QWEN3_0_6B)
lines = []
def sink(record):
    tally(record)
    lines.append(repr((record.plan.conversation_id, record.turns, record.last_turn_gaps)))
simulation = Simulation(a_deployment("p0", "d0", "d1", "d2", capacity=308_448), sink)
simulation.run(plans)
print(json.dumps(asdict(tally.summary(simulation)), indent=1))
print("\\n".join(lines))
"""


def run(hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_same_seed_gives_the_same_bytes_under_another_hash_seed() -> None:
    assert run("0") == run("12345")


def test_the_summary_is_the_stored_one() -> None:
    summary, _ = json.JSONDecoder().raw_decode(run("1"))
    stored = json.loads(GOLDEN.read_text())
    assert summary.keys() == stored.keys()
    for name, value in stored.items():
        assert summary[name] == pytest.approx(value, rel=1e-9), name
