"""Every tier map in the repository loads and says what its name promises."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.planning.checksum import is_edited
from conserve_sglang.profiles import shipped_profiles
from conserve_sglang.tiermap import load_tier_map

MAPS = Path(__file__).parents[2] / "tier_maps"
PLANNED = ("a40_l4.yaml", "h100_l4.yaml")


@pytest.mark.parametrize("path", sorted(MAPS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_map_loads_and_is_documented(path: Path) -> None:
    assert load_tier_map(path).workers
    assert f"`{path.name}`" in (MAPS / "README.md").read_text()


def test_the_cpu_map_has_one_prefiller_and_two_decoders_on_this_machine() -> None:
    tier_map = load_tier_map(MAPS / "cpu_local.yaml")
    assert [w.role for w in tier_map.workers] == [Role.PREFILL, Role.DECODE, Role.DECODE]
    assert all(tier.is_cpu and tier.host == "127.0.0.1" for tier in tier_map.tiers)
    assert all("max-total-tokens" in tier.sglang_flags for tier in tier_map.tiers)


@pytest.mark.parametrize("name", PLANNED)
def test_a_planned_map_says_how_it_was_chosen(name: str) -> None:
    words = shlex.split(command_of(name))
    assert words[:2] == ["conserve-sglang", "plan"]
    assert words[words.index("-o") + 1] == f"tier_maps/{name}"
    for option in ("--inventory", "--workload"):
        assert (MAPS.parent / words[words.index(option) + 1]).exists()
    text = (MAPS / name).read_text()
    assert "Modelled, from profiles" in text
    assert not is_edited(text), "run the command in its head, with --force"
    tier_map = load_tier_map(MAPS / name)
    caps = [(tier.power_cap_w or 0) * len(tier.gpu_ids) for tier in tier_map.tiers]
    assert 0 < sum(caps) <= (tier_map.power_budget_w or 0)
    assert all(tier.profile in shipped_profiles() for tier in tier_map.tiers)


def command_of(name: str) -> str:
    """The command in a planned map's head."""
    lines = (MAPS / name).read_text().splitlines()
    (found,) = [line for line in lines if line.startswith("#     conserve-sglang plan ")]
    return found.removeprefix("#").strip()


def test_a_planned_map_is_what_its_command_makes_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else profiles, policies or the planner have changed: run the commands in the maps' heads."""
    words = shlex.split(command_of(PLANNED[0]))
    out = tmp_path / "map.yaml"
    words[words.index("-o") + 1] = str(out)
    monkeypatch.chdir(MAPS.parent)
    command = Path(sys.executable).parent / words[0]
    done = subprocess.run([command, *words[1:], "--quick"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr

    def without_command(path: Path) -> list[str]:
        lines = path.read_text().splitlines()
        named = ("conserve-sglang plan --", "# checksum, ")  # these differ with the file's name
        return [line for line in lines if not any(words in line for words in named)]

    assert without_command(out) == without_command(MAPS / PLANNED[0])


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
