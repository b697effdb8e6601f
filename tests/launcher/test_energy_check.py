"""Profiles and recordings that a tier map names are looked at before anything is started."""

from pathlib import Path

import pytest

from tests.agent.maps import a_gpu_map, a_map
from tests.cli.conftest import RunCli, run_cli

__all__ = ["run_cli"]


def written(folder: Path, text: str) -> Path:
    path = folder / "map.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (a_map(tier=", profile: nope"), "tiers[0].profile: no profile 'nope'"),
        (a_gpu_map("meter: replay, recording: no.csv"), "energy.recording: "),
        (a_map(energy=", meter: nvml"), "energy.meter: nvml reads GPUs"),
    ],
)
def test_what_is_missing_is_said_by_validate_and_by_a_dry_run(
    run_cli: RunCli, tmp_path: Path, text: str, message: str
) -> None:
    path = written(tmp_path, text)
    for asked in (("tiers", "validate", path), ("launch", "--tier-map", path, "--dry-run")):
        ran = run_cli(*asked)
        assert (ran.code, message in ran.err) == (2, True), ran


def test_profile_of_something_else_and_a_budget_without_energy_are_noted(
    run_cli: RunCli, tmp_path: Path
) -> None:
    text = a_gpu_map("").replace("base_port", "profile: l4-qwen3-0.6b, base_port")
    path = written(tmp_path, text.replace("energy: {}", "power_budget_w: 300"))
    ran = run_cli("tiers", "validate", path)
    assert ran.code == 0
    assert "is of GPU" in ran.out
    assert "is of model" in ran.out
    assert "300 W named in the tier map is not enforced" in ran.out
