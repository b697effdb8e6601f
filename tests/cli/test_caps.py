"""conserve-sglang caps: what it prints, and its exit codes; tests/energy has what it writes."""

import json
from pathlib import Path

from tests.energy.test_control_log import a_log

from .conftest import RunCli

MAPS = Path(__file__).parents[2] / "tier_maps"


def test_plan_without_a_gpu_shows_what_is_asked_for(run_cli: RunCli) -> None:
    ran = run_cli("caps", "plan", "--tier-map", MAPS / "a40_capped.yaml", "--json")
    document = json.loads(ran.out)
    assert document["asked_for"][1] == "tier decode: GPU 1 of 127.0.0.1: power cap 200 W"
    assert document["not_checked"] is not None
    assert document["changes"] == []


def test_a_map_without_caps_says_so(run_cli: RunCli) -> None:
    ran = run_cli("caps", "plan", "--tier-map", MAPS / "cpu_local.yaml")
    assert (ran.code, ran.out.startswith("no caps in this tier map")) == (0, True)


def test_other_machines_caps_are_told_apart(run_cli: RunCli) -> None:
    words = ("caps", "plan", "--tier-map", MAPS / "a40_capped.yaml", "--host", "elsewhere")
    assert "elsewhere: tier decode: GPU 3 of 127.0.0.1: power cap 200 W" in run_cli(*words).out


def test_a_replay_says_whether_the_moves_are_the_same(run_cli: RunCli, tmp_path: Path) -> None:
    log = tmp_path / "control.jsonl"
    a_log(log)
    ran = run_cli("caps", "replay", log)
    assert (ran.code, ran.out) == (0, "59 periods: the same moves\n")
    log.write_text(log.read_text().replace('"reason": "over_budget"', '"reason": "stale"', 1))
    ran = run_cli("caps", "replay", log)
    assert ran.code == 1
    assert "59 periods: 1 with other moves" in ran.out
    assert json.loads(run_cli("caps", "replay", log, "--json").out)["periods"] == 59


def test_a_log_that_is_none_is_the_users_to_mend(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("caps", "replay", tmp_path / "none").code == 2
