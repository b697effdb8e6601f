"""conserve-sglang simulate with several policies, and the figures it draws."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.profiles import save_profile
from conserve_sglang.profiles.published import a40_qwen3_0_6b

from .conftest import RunCli

ROOT = Path(__file__).parents[2]
MAP = ROOT / "tier_maps" / "a40_capped.yaml"
SAMPLES = ROOT / "tests" / "traces" / "samples"
SYNTHETIC = ("simulate", "--tier-map", MAP, "--synthetic", 30, "--rate", 1.0)


def test_policies_are_compared_and_drawn(run_cli: RunCli, tmp_path: Path) -> None:
    policies = ("--policy", "conserve", "--policy", "colocated")
    ran = run_cli(*SYNTHETIC, *policies, "--figures", tmp_path / "figures")
    assert (ran.code, ran.err) == (0, "")
    assert "(modelled)" in " ".join(ran.out.split())
    words = [line.split() for line in ran.out.splitlines()]
    rows = [row for row in words if len(row) == 9 and row[6].endswith("%")]
    assert [row[:2] for row in rows] == [["conserve", "100.0%"], ["colocated", "100.0%"]]
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"ttfet.svg", "last_turn_tbt.svg", "e2e.svg", "tokens_per_joule.svg"} <= names
    assert {"power_conserve.svg", "power_colocated.svg"} <= names
    assert "colocated" in (tmp_path / "figures" / "ttfet.svg").read_text()


def test_compared_runs_are_the_same_as_runs_alone(run_cli: RunCli) -> None:
    policies = ("--policy", "conserve", "--policy", "colocated")
    both = json.loads(run_cli(*SYNTHETIC, *policies, "--json").out)
    assert both["modelled"] is True
    for run in both["runs"]:
        alone = run_cli(*SYNTHETIC, "--policy", run["policy"], "--json")
        assert json.loads(alone.out) == run


def test_a_comparison_tells_what_was_not_played_and_not_answered(run_cli: RunCli) -> None:
    policies = ("--policy", "conserve", "--policy", "colocated")
    few_bad = ("simulate", "--tier-map", MAP, "--trace", SAMPLES / "conversations.jsonl")
    out = run_cli(*few_bad, *policies).out
    assert "line 8 was not used: " in out
    assert "profile of tier decode: a40-qwen3-0.6b-200w" in out
    assert "colocated has no use for prefill tiers" in out
    sized = ("--window", 14_000, "--fitting", 0.5, "--kv-capacity-tokens", 12_000)
    out = " ".join(run_cli(*SYNTHETIC, *policies, *sized).out.split())
    assert "scaled: all lengths times 0." in out
    assert out.count("left out") == 1
    assert "of 30, " in out
    assert "conserve: " in out
    assert "conversations not answered: too_long" in out
    with_budget = run_cli(*SYNTHETIC, *policies, "--keep-budget").out
    assert with_budget.count("budget (modelled): 900 W") == 2


def test_large_figures_of_a_comparison_are_told_whole(run_cli: RunCli) -> None:
    names = ("conserve", "work-conserving-tails", "coin-flip:error_rate=0.5")
    policies = [word for name in names for word in ("--policy", name)]
    slow = ("--like", "claude-code", "--window", 40_000, "--fitting", 1)
    assert "…" not in run_cli(*SYNTHETIC, *slow, *policies).out


def test_figures_come_with_what_they_are_to_be_read_with(run_cli: RunCli) -> None:
    policies = ("--policy", "conserve", "--policy", "coin-flip")
    out = " ".join(run_cli(*SYNTHETIC, *policies).out.split())
    assert "coin-flip is simulated only: on real servers it would need KV sent from" in out
    assert "conserve is simulated only" not in out
    assert "hold the tool gaps" not in out
    trace = ("simulate", "--tier-map", MAP, "--trace", SAMPLES / "conversations.jsonl")
    notes = json.loads(run_cli(*trace, "--json").out)["notes"]
    assert notes == [
        "TTFET and E2E, and what they are divided by, hold the tool gaps: 1.0 s of a conversation"
        " in the mean"
    ]


OVERLOADED = ("simulate", "--tier-map", MAP, "--synthetic", 150, "--rate", 50)


def test_conversations_that_are_not_answered_never_end(run_cli: RunCli) -> None:
    """A policy must not look fast by serving few."""
    policies = ("--policy", "conserve", "--policy", "stock-pd")
    document = json.loads(run_cli(*OVERLOADED, *policies, "--json").out)
    slos = []
    for run in document["runs"]:
        summary = run["summary"]
        share = summary["outcomes"]["answered"] / 150
        assert run["answered"] == share < 0.95
        assert summary["ttfet"]["count"] == 150
        assert summary["ttfet"]["p95_s"] is None
        assert summary["e2e"]["geomean_normalised"] is None
        assert (summary["ttfet"]["p50_s"] is None) is (share < 0.5)
        slos.append(summary["ttfet"]["slo_s"])
    assert slos[0] == pytest.approx(slos[1]), "all policies are judged by the same target"
    out = run_cli(*OVERLOADED, *policies).out
    assert out.split().count("never") >= 6
    assert "percentiles are of all conversations that arrived; never: " in " ".join(out.split())
    alone = run_cli(*OVERLOADED).out
    assert "never" in next(line for line in alone.splitlines() if "TTFET" in line)


def test_figures_end_at_the_share_that_was_answered(run_cli: RunCli, tmp_path: Path) -> None:
    document = json.loads(run_cli(*OVERLOADED, "--figures", tmp_path, "--json").out)
    told = f"({document['answered']:.1%} answered)"
    for name in ("ttfet", "last_turn_tbt", "e2e", "tokens_per_joule"):
        assert told in (tmp_path / f"{name}.svg").read_text()


def test_a_comparison_fits_80_columns(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = ("work-conserving-tails", "conserve:max_local_append_tokens=9")
    policies = [word for name in names for word in ("--policy", name)]
    out = run_cli(*SYNTHETIC, *policies).out
    assert re.search(r"^ ?work-conserving-tails +100\.0%", out, re.M)
    assert re.search(r"^ ?conserve: +100\.0%.*\n +max_local_append_tokens=9", out, re.M)
    assert max(map(len, out.splitlines())) <= 80


def test_what_runs_have_in_common_is_said_once(run_cli: RunCli, tmp_path: Path) -> None:
    short = a40_qwen3_0_6b(300)
    short = replace(
        short, name="short", prefill=tuple(p for p in short.prefill if p.new_tokens <= 8192)
    )
    wanted = ("--profile", save_profile(short, tmp_path))
    out = run_cli(*SYNTHETIC, *wanted, "--policy", "conserve", "--policy", "stock-pd").out
    told = " ".join(out.split())
    assert told.count("beyond the profile: tier prefill: prompt tokens") == 1


def test_figures_do_not_change_the_run(run_cli: RunCli, tmp_path: Path) -> None:
    drawn = run_cli(*SYNTHETIC, "--figures", tmp_path, "--json").out
    assert drawn == run_cli(*SYNTHETIC, "--json").out
