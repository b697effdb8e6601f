"""Every tier map in the repository loads and says what its name promises."""

from pathlib import Path

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.tiermap import load_tier_map

MAPS = Path(__file__).parents[2] / "tier_maps"


@pytest.mark.parametrize("path", sorted(MAPS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_map_loads_and_is_documented(path: Path) -> None:
    assert load_tier_map(path).workers
    assert f"`{path.name}`" in (MAPS / "README.md").read_text()


def test_the_cpu_map_has_one_prefiller_and_two_decoders_on_this_machine() -> None:
    tier_map = load_tier_map(MAPS / "cpu_local.yaml")
    assert [w.role for w in tier_map.workers] == [Role.PREFILL, Role.DECODE, Role.DECODE]
    assert all(tier.is_cpu and tier.host == "127.0.0.1" for tier in tier_map.tiers)
    assert all("max-total-tokens" in tier.sglang_flags for tier in tier_map.tiers)


def test_the_capped_map_is_the_papers() -> None:
    tier_map = load_tier_map(MAPS / "a40_capped.yaml")
    assert [(t.gpu, t.count, t.power_cap_w) for t in tier_map.tiers] == [
        ("A40", 1, 300),
        ("A40", 3, 200),
    ]


def test_the_one_gpu_map_names_its_memory_fractions() -> None:
    tiers = load_tier_map(MAPS / "one_gpu.yaml").tiers
    assert {gpu for tier in tiers for gpu in tier.gpu_ids} == {0}
    assert sum(float(tier.sglang_flags["mem-fraction-static"] or 1) for tier in tiers) < 0.9
