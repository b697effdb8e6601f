"""conserve-sglang plan."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.profiles import save_profile
from conserve_sglang.profiles.published import a40_qwen3_0_6b
from conserve_sglang.tiermap import load_tier_map

from .conftest import Ran, RunCli

INVENTORY = """
schema_version: 1
model: {path: Qwen/Qwen3-0.6B}
tiers:
  - {name: a40, gpu: A40, hosts: [{name: box, gpus: 4}], power_caps_w: [null, 200]}
  - {name: l4, gpu: L4, hosts: [{name: l4-box, gpus: 4}], power_caps_w: [null, 50]}
"""
WORKLOAD = """
schema_version: 1
shape: {turns: 4, first_input_tokens: 8000, append_tokens: 100, output_tokens: 80}
conversations_per_s: 1
"""
FEW = """
schema_version: 1
model: {path: Qwen/Qwen3-0.6B}
tiers:
  - {name: a40, gpu: A40, hosts: [{name: box, gpus: 2}], power_caps_w: [null]}
"""
SLOW = WORKLOAD.replace("conversations_per_s: 1", "conversations_per_s: 0.1")


@pytest.fixture
def few(tmp_path: Path) -> tuple[object, ...]:
    """Little to choose from and little load: planned soon."""
    (tmp_path / "inventory.yaml").write_text(FEW)
    (tmp_path / "workload.yaml").write_text(SLOW)
    return (
        *("--inventory", tmp_path / "inventory.yaml"),
        *("--workload", tmp_path / "workload.yaml"),
        *("--conversations", 300),
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[object, ...]:
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    (tmp_path / "workload.yaml").write_text(WORKLOAD)
    return (
        *("--inventory", tmp_path / "inventory.yaml"),
        *("--workload", tmp_path / "workload.yaml"),
    )


def test_a_plan_writes_a_map_that_launch_reads_and_a_report(
    run_cli: RunCli, files: tuple[object, ...], tmp_path: Path
) -> None:
    out, report = tmp_path / "map.yaml", tmp_path / "report.html"
    slo = ("--slo", "ttfet=20,tbt=0.05", "--power-budget", 900)
    ran = run_cli("plan", *files, *slo, "-o", out, "--report", report, "--quick")
    assert ran.code == 0
    assert "tokens-per-joule at 1 conversations/s (all of it modelled)" in ran.out
    assert "tokens/J" in ran.out.splitlines()[3], "the table does not fit 80 columns"
    tier_map = load_tier_map(out)
    assert tier_map.power_budget_w == 900
    assert tier_map.slo.ttfet_s == 20
    assert all(tier.profile for tier in tier_map.tiers)
    assert report.read_text().startswith("<!doctype html>")
    launched = run_cli("launch", "--tier-map", out, "--dry-run")
    assert launched.code == 0


def test_the_command_in_the_maps_head_makes_the_same_map(
    run_cli: RunCli, files: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "map.yaml"
    assert run_cli("plan", *files, "--slo", "tbt=0.05", "-o", out, "--quick").code == 0
    first = out.read_text()
    (command,) = [line for line in first.splitlines() if "conserve-sglang plan --" in line]
    words = shlex.split(command.removeprefix("#"))
    assert run_cli(*words[1:], "--quick").code == 0
    assert out.read_text() == first


def test_json_has_the_choice_its_margins_and_where_numbers_come_from(
    run_cli: RunCli, files: tuple[object, ...]
) -> None:
    slo = ("--slo", "ttfet=20,e2e=25", "--slo", "tbt=0.05")
    ran = run_cli("plan", *files, *slo, "--json", "--quick")
    document = json.loads(ran.out)
    assert document["modelled"] is True
    assert document["feasible"] is True
    assert sum(one["count"] for one in document["chosen"]["workers"]) > 0
    margins = {margin["name"]: margin for margin in document["margins"]}
    assert set(margins) == {"TTFET p95", "last-turn TBT p95", "E2E p95"}
    assert margins["E2E p95"]["limit"] == document["e2e_s"] == 25
    assert margins["E2E p95"]["value"] == document["chosen"]["e2e_s"]
    assert all(margin["share"] >= 0 for margin in document["margins"])
    kinds = {profile["times"] for profile in document["profiles"]}
    assert kinds == {"published", "estimated"}
    assert document["tier_map"].splitlines()[0].startswith("# Chosen by")
    assert document["runner_ups"]


def test_what_lies_beyond_the_profiles_points_is_said_everywhere(
    run_cli: RunCli, tmp_path: Path
) -> None:
    whole = a40_qwen3_0_6b(300)
    known = tuple(point for point in whole.prefill if point.new_tokens <= 2048)
    short = replace(whole, name="short", prefill=known)
    (tmp_path / "inventory.yaml").write_text(INVENTORY.replace("[null, 200]", "[null]"))
    (tmp_path / "workload.yaml").write_text(WORKLOAD)
    files = ("--inventory", tmp_path / "inventory.yaml", "--workload", tmp_path / "workload.yaml")
    report = tmp_path / "report.html"
    options = ("--profiles", save_profile(short, tmp_path), "--quick", "--report", report)
    said = " ".join(run_cli("plan", *files, *options).out.split())
    words = (
        r"prompt tokens up to 8,\d+, the points of profile short end at 2,048 \((3|4)\.\d+ x as far"
    )
    assert re.search(words, said)
    assert re.search(words, report.read_text())
    chosen = json.loads(run_cli("plan", *files, *options, "--json").out)["chosen"]
    (prompts,) = (one for one in chosen["beyond_profile"] if one["what"] == "prompt tokens")
    assert prompts["reached"] >= 8000
    assert (prompts["points_end_at"], prompts["of"]) == (2048, "prefills")


def infeasible(run_cli: RunCli, files: tuple[object, ...], *more: object) -> Ran:
    return run_cli("plan", *files, "--slo", "ttfet=20,tbt=0.05", "--power-budget", 100, *more)


def test_what_cannot_be_is_exit_code_3_and_the_least_change(
    run_cli: RunCli, files: tuple[object, ...], tmp_path: Path
) -> None:
    out, report = tmp_path / "map.yaml", tmp_path / "report.html"
    ran = infeasible(run_cli, files, "-o", out, "--report", report)
    assert ran.code == 3
    said = " ".join(ran.err.split())
    assert "infeasible: no choice of these GPUs keeps all limits; the nearest" in said
    assert "the smallest change found that would help: " in said
    assert "Smallest, of changes of the same limits, in short runs" in said
    assert not out.exists()
    document = json.loads(infeasible(run_cli, files, "--json").out)
    assert document["feasible"] is False
    ((change, *_), *_) = document["changes"]
    assert change["needed"] != change["given"]
    assert f"{change['needed']:.4g}" in change["text"]
    first = document["evidence"][0]
    assert f"({first['text']})" in said
    for one in document["evidence"]:
        is_shown = one["tried"] in ("all", "near")
        assert is_shown == ("and fails" in one["text"]), one
        assert is_shown or "not shown to be the smallest" in one["text"], one
        assert not is_shown or one["fleets"] > 0, one
    assert document["smallest_means"] in said
    page = report.read_text()
    assert page.startswith("<!doctype html>")
    assert first["text"] in page
    assert document["smallest_means"] in page


def test_what_cannot_be_has_a_report_and_leaves_the_earlier_map(
    run_cli: RunCli, few: tuple[object, ...], tmp_path: Path
) -> None:
    out, report = tmp_path / "map.yaml", tmp_path / "report.html"
    asked = ("plan", *few, "--quick", "-o", out, "--report", report)
    ran = run_cli(*asked, "--slo", "ttfet=0.1")
    assert ran.code == 3
    assert f"no tier map was written: {out} is not there" in ran.err
    assert f"report: {report}" in ran.err
    assert run_cli(*asked).code == 0, "the report of what cannot be is one of plan's own"
    planned = out.read_text()
    ran = run_cli(*asked, "--slo", "ttfet=0.1")
    assert f"no tier map was written: {out} is of an earlier plan" in ran.err
    assert out.read_text() == planned
    page = report.read_text()
    assert "No tier map was written" in page
    assert "TTFET p95" in page
    document = json.loads(run_cli(*asked, "--slo", "ttfet=0.1", "--json").out)
    assert (document["tier_map"], document["older_tier_map"]) == (None, str(out))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slo", "speed=3"), "write ttfet=SECONDS, tbt=SECONDS or e2e=SECONDS"),
        (("--slo", "tbt=fast"), "write ttfet=SECONDS, tbt=SECONDS or e2e=SECONDS"),
        (("--slo", "e2e=nan"), "write ttfet=SECONDS, tbt=SECONDS or e2e=SECONDS"),
        (("--slo", "ttfet=4", "--slo", "ttfet=9"), "--slo: ttfet is given twice"),
        (("--objective", "best"), "there is none of that name; use tokens-per-joule"),
        (("--rate", 0), "--rate 0: give how many conversations come a second"),
        (("--rate", "nan"), "--rate nan: give how many conversations come a second"),
        (("--power-budget", 0), "--power-budget 0: give a number above 0"),
        (("--power-budget", -3), "--power-budget -3: give a number above 0"),
        (("--energy-budget", 0), "--energy-budget 0: give a number above 0"),
        (("-o", "nowhere/map.yaml"), "there is no directory nowhere"),
        (("--report", "nowhere/page.html"), "there is no directory nowhere"),
        (("-o", "."), "it is a directory"),
        (("-o", "one.html", "--report", "one.html"), "for both the tier map and the report"),
        (("--profiles", "nothing"), "no profile 'nothing'"),
        (("--profiles", "h100-qwen3-8b"), "none of the profiles is of A40 or L4"),
    ],
)
def test_options_that_are_wrong_are_exit_code_2(
    run_cli: RunCli, files: tuple[object, ...], options: tuple[object, ...], message: str
) -> None:
    ran = run_cli("plan", *files, *options)
    assert ran.code == 2
    assert message in ran.err


def test_only_what_plan_wrote_is_written_over(
    run_cli: RunCli, files: tuple[object, ...], tmp_path: Path
) -> None:
    inventory, mine = tmp_path / "inventory.yaml", tmp_path / "page.html"
    mine.write_text("notes of mine")
    for option, path in (("-o", inventory), ("--report", mine)):
        before = path.read_text()
        ran = run_cli("plan", *files, option, path)
        assert ran.code == 2
        assert f"{path}: is there already, and was not written by" in ran.err
        assert path.read_text() == before


def test_a_planned_map_that_was_edited_is_written_over_only_by_force(
    run_cli: RunCli, few: tuple[object, ...], tmp_path: Path
) -> None:
    out, report = tmp_path / "map.yaml", tmp_path / "page.html"
    asked = ("plan", *few, "--quick", "-o", out, "--report", report)
    assert run_cli(*asked).code == 0
    planned = out.read_text()
    assert run_cli(*asked).code == 0, "what plan wrote itself"
    for path in (out, report):
        before = path.read_text()
        path.write_text(before.replace("router", "rooter") + "\n")
        ran = run_cli(*asked)
        assert ran.code == 2
        assert f"{path}: was written by `conserve-sglang plan`, and edited since" in ran.err
        path.write_text(before)
    out.write_text(planned.replace("count: ", "count:  "))
    assert run_cli(*asked, "--force").code == 0
    assert out.read_text() == planned


def test_where_nobody_sees_a_spinner_a_line_tells_the_stage(
    run_cli: RunCli, few: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conserve_cli.plan_progress.EVERY_S", 0.02)
    ran = run_cli("plan", *few, "--quick", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["feasible"]
    assert any(re.fullmatch(r"\d+ s: simulating 1 a40 .*", line) for line in ran.err.splitlines())


def test_tool_gaps_are_told_as_what_no_gpu_shortens(
    run_cli: RunCli, few: tuple[object, ...], tmp_path: Path
) -> None:
    gaps = SLOW.replace("output_tokens: 80", "output_tokens: 80, gap_s: 10")
    (tmp_path / "workload.yaml").write_text(gaps)
    out, report = tmp_path / "map.yaml", tmp_path / "page.html"
    asked = ("plan", *few, "--quick", "-o", out, "--report", report)
    ran = run_cli(*asked, "--slo", "ttfet=60")
    words = "TTFET and E2E hold the tool gaps: 30 s of a conversation at p95"
    for told in (ran.out, out.read_text(), report.read_text()):
        assert words in told
    ran = run_cli(*asked, "--slo", "ttfet=20")
    assert ran.code == 3
    assert f"{words}, so no fleet keeps the TTFET target of 20 s" in " ".join(ran.err.split())


def test_a_tier_whose_roles_are_the_cause_is_told_so(
    run_cli: RunCli, few: tuple[object, ...], tmp_path: Path
) -> None:
    inventory = tmp_path / "inventory.yaml"
    inventory.write_text(
        FEW + "  - {name: l4, gpu: L4, hosts: [{name: l, gpus: 1}], roles: [decode]}\n"
    )
    ran = run_cli("plan", *few)
    assert ran.code == 0
    told = "l4 alone: not feasible; roles are needed that serve, mixed, or prefill and decode"
    assert told in " ".join(ran.out.split())
    inventory.write_text(FEW.replace("gpu:", "roles: [prefill], gpu:"))
    ran = run_cli("plan", *few)
    assert ran.code == 2
    assert "allowed are a40: prefill" in ran.err


def test_files_that_are_not_there_are_exit_code_2(run_cli: RunCli, tmp_path: Path) -> None:
    ran = run_cli("plan", "--inventory", tmp_path / "no.yaml", "--workload", tmp_path / "no.yaml")
    assert ran.code == 2
    assert "cannot be read" in ran.err
