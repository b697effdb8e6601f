"""The planned tier maps that are shipped keep their targets in a run much longer than those that
they were judged by, with another seed."""

import re
from pathlib import Path

import pytest

from conserve_sglang.planning import load_workload
from conserve_sglang.planning.score import quantile_of
from conserve_sglang.sim import (
    ConversationRecord,
    Outcome,
    Simulation,
    deployment_of,
    profiles_of,
)
from conserve_sglang.tiermap import load_tier_map

MAPS = Path(__file__).parents[2] / "tier_maps"
NUM, SEED = 5000, 77


@pytest.mark.parametrize("name", ["a40_l4", "h100_l4"])
def test_a_shipped_plan_keeps_its_targets_in_the_long_run(name: str) -> None:
    path = MAPS / f"{name}.yaml"
    (rate,) = re.findall(r" --rate (\S+) ", path.read_text(encoding="utf-8"))
    load = load_workload(MAPS / "plans" / "agents_8k.workload.yaml", float(rate))
    tier_map = load_tier_map(path)
    profiles, _ = profiles_of(tier_map)
    records: list[ConversationRecord] = []
    simulation = Simulation(deployment_of(tier_map, profiles, tier_map.policy), records.append)
    simulation.run(load.sample(NUM, float(rate), SEED))
    records.sort(key=lambda record: record.plan.arrived_at_s)
    assert all(record.outcome is Outcome.ANSWERED for record in records)
    assert tier_map.slo.ttfet_s is not None
    assert tier_map.slo.last_turn_tbt_s is not None
    for part in (records, records[NUM // 2 :]):
        ttfets = [record.ttfet_s for record in part]
        tbts = [tbt for record in part if (tbt := record.last_turn_tbt_s) is not None]
        assert quantile_of(ttfets, len(part), 0.95) <= tier_map.slo.ttfet_s
        assert quantile_of(tbts, len(tbts), 0.95) <= tier_map.slo.last_turn_tbt_s
