"""conserve-sglang simulate."""

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


def test_a_synthetic_workload_is_played_on_a_tier_map(run_cli: RunCli) -> None:
    ran = run_cli(*SYNTHETIC, "--seed", 7, "--json")
    assert (ran.code, ran.err) == (0, "")
    document = json.loads(ran.out)
    assert document["modelled"] is True
    assert document["policy"] == "conserve"
    assert document["num_kv_transfers"] == 30
    assert document["summary"]["outcomes"] == {"answered": 30}
    assert document["summary"]["num_turns"] == 150
    assert document["summary"]["ttfet"]["p50_normalised"] > 1
    assert document["unit_costs"]["decode"]["name"] == "a40-qwen3-0.6b-200w"
    assert any(
        "2606.01839" in told for told in document["unit_costs"]["prefill"]["sources"].values()
    )


def test_the_same_seed_prints_the_same_bytes(run_cli: RunCli) -> None:
    one, two, other = (run_cli(*SYNTHETIC, "--seed", s, "--json").out for s in (7, 7, 8))
    assert one == two != other


@pytest.mark.parametrize("policy", ["stock-pd", "colocated", "round-robin"])
def test_another_policy_takes_the_tier_maps_place(run_cli: RunCli, policy: str) -> None:
    document = json.loads(run_cli(*SYNTHETIC, "--policy", policy, "--json").out)
    assert document["policy"] == policy
    transfers = 0 if policy == "colocated" else 150
    assert document["num_kv_transfers"] == transfers


def test_the_table_names_the_latencies_and_says_it_is_a_model(run_cli: RunCli) -> None:
    out = run_cli(*SYNTHETIC).out
    assert all(word in out for word in ("TTFET", "last-turn TBT", "E2E", "modelled"))
    assert "30 conversations: 30 answered" in out


def test_joules_are_told_as_modelled_and_sum_up(run_cli: RunCli) -> None:
    out = run_cli(*SYNTHETIC).out
    lines = [line for line in out.splitlines() if "J" in line.split() or "joules" in line]
    assert lines
    assert all("modelled" in line for line in lines)
    energy = json.loads(run_cli(*SYNTHETIC, "--json").out)["summary"]["modelled_energy"]
    parts = sum(energy[f"{name}_j"] for name in ("prefill", "append_prefill", "decode", "idle"))
    assert parts == pytest.approx(energy["total_j"])


def test_each_tier_is_played_by_the_profile_of_its_gpu_and_model(run_cli: RunCli) -> None:
    options = ("--synthetic", 5, "--rate", 0.1, "--window", 8000, "--fitting", 0.9)
    ran = run_cli(
        "simulate", "--tier-map", ROOT / "tests" / "maps" / "two_machines.yaml", *options, "--json"
    )
    document = json.loads(ran.out)
    assert document["unit_costs"]["l4"]["name"] == "l4-qwen3-8b"
    assert document["unit_costs"]["l4"]["is_estimated"] is True
    assert document["unit_costs"]["a40"]["name"] == "a40-qwen3-8b"
    assert document["notes"] == []


def test_prompts_beyond_a_profiles_points_are_told(run_cli: RunCli, tmp_path: Path) -> None:
    short = a40_qwen3_0_6b(300)
    short = replace(
        short, name="short", prefill=tuple(p for p in short.prefill if p.new_tokens <= 8192)
    )
    assert "beyond the profile" not in run_cli(*SYNTHETIC).out
    wanted = ("--profile", save_profile(short, tmp_path))
    out = " ".join(run_cli(*SYNTHETIC, *wanted).out.split())
    assert "beyond the profile: tier prefill: prompt tokens up to" in out
    assert "the points of profile short end at 8,192" in out
    several = run_cli(*SYNTHETIC, *wanted, "--policy", "conserve", "--policy", "stock-pd").out
    assert "the points of profile short end at 8,192" in " ".join(several.split())
    told = json.loads(run_cli(*SYNTHETIC, *wanted, "--json").out)
    (prompts,) = (
        one
        for one in told["beyond_profile"]
        if (one["tier"], one["what"]) == ("prefill", "prompt tokens")
    )
    assert 8192 < prompts["reached"] <= told["summary"]["longest_prompt_tokens"]
    assert prompts["times_as_far"] == prompts["reached"] / 8192
    assert 0 < prompts["share"] <= 1


def test_a_profile_of_ones_own_is_preferred(run_cli: RunCli, tmp_path: Path) -> None:
    own = replace(a40_qwen3_0_6b(300), name="mine")
    ran = run_cli(*SYNTHETIC, "--profile", save_profile(own, tmp_path), "--json")
    costs = json.loads(ran.out)["unit_costs"]
    assert costs["prefill"]["name"] == "mine"
    assert costs["decode"]["name"] == "mine-200w"  # its cap's effect is estimated
    assert "derived from mine" in costs["decode"]["sources"]["times"]


def test_a_trace_is_played_and_its_bad_lines_are_named(run_cli: RunCli) -> None:
    ran = run_cli("simulate", "--tier-map", MAP, "--trace", SAMPLES / "conversations.jsonl")
    assert ran.code == 0
    assert "line 8 was not used: " in ran.out
    assert "2 conversations: 2 answered" in ran.out


def test_conversations_can_be_cut_by_turns_and_by_window(run_cli: RunCli) -> None:
    cut = ("--max-turns", 1, "--window", 4000, "--json")
    trace = ("--trace", SAMPLES / "claude_code.csv", "--rate", 1)
    document = json.loads(run_cli("simulate", "--tier-map", MAP, *trace, *cut).out)
    assert document["summary"]["num_turns"] == 2
    assert document["num_left_out"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "either --trace FILE or --synthetic N"),
        (("--synthetic", 5), "say how fast with --rate"),
        (("--synthetic", 5, "--rate", 0), "--rate must be positive"),
        (("--synthetic", 5, "--rate", 1, "--policy", "best"), "no policy 'best'; known here: "),
        (("--trace", "nowhere"), "cannot be read"),
        (("--synthetic", 5, "--rate", 1, "--like", "me"), "use one of mini-swe, claude-code"),
        (("--synthetic", 5, "--rate", 1, "--fitting", 0.5), "say which with --window"),
        (
            ("--synthetic", 5, "--rate", 1, "--window", 900, "--fitting", 2),
            "--fitting is a share, at most 1",
        ),
        (("--synthetic", 5, "--cv", 2), "--cv shapes the arrivals of --rate"),
        (("--synthetic", 5, "--rate", 1, "--load", 0), "--load must be positive"),
        (("--synthetic", 5, "--rate", "nan"), "--rate must be a number, not nan"),
        (("--synthetic", 5, "--rate", "inf"), "--rate must be a number, not inf"),
        (("--synthetic", 5, "--rate", 1, "--load", "nan"), "--load must be a number"),
        (("--synthetic", 5, "--rate", 1, "--tool-gaps", "nan"), "--tool-gaps must be a number"),
        (("--synthetic", 5, "--rate", 1, "--policy", "coin-flip:x"), "'x' is not param=value"),
        (
            ("--synthetic", 5, "--rate", 1, "--policy", "conserve:x=1"),
            "x: unknown field; known here: max_local",
        ),
        (
            ("--synthetic", 5, "--rate", 1, "--policy", "conserve:max_local_append_tokens=abc"),
            "max_local_append_tokens: expected `int`, got `str`",
        ),
        (
            ("--synthetic", 5, "--rate", 1, "--policy", "conserve:max_local_append_tokens=1.5"),
            "max_local_append_tokens: expected `int`, got `float`",
        ),
        (
            ("--synthetic", 5, "--rate", 1, "--policy", "work-conserving:late_after_s=abc"),
            "late_after_s: expected `float | null`, got `str`",
        ),
        (
            ("--synthetic", 5, "--rate", 1, "--policy", "conserve", "--policy", "conserve"),
            "--policy conserve is given twice",
        ),
        (("--synthetic", 5, "--rate", 1e-300), "times are exact to a microsecond up to"),
        (("--synthetic", 5, "--rate", 1, "--load", 1e-16), "raise --rate or --load"),
        (("--synthetic", 5, "--rate", 1, "--tool-gaps", -1), "--tool-gaps must not be negative"),
        (("--synthetic", 5, "--rate", 1, "--cv", -2), "--cv must be positive, and is -2"),
        (("--synthetic", 5, "--rate", 1, "--cv", 1e-200), "--cv must lie between 0.001 and 1000"),
        (("--synthetic", 5, "--rate", 1, "--cv", 1e200), "--cv must lie between 0.001 and 1000"),
        (("--synthetic", 5, "--rate", 1e-300, "--load", 1e-99), "--rate times --load must be"),
        (
            ("--synthetic", 5, "--rate", 1, "--policy", "conserve:max_local_append_tokens=0"),
            "=0: max_local_append_tokens must be at least 1",
        ),
        (("--synthetic", 5, "--rate", 1, "--window", 100), "--window 100: of 5 conversations none"),
        (("--synthetic", 5, "--rate", 1, "--tokenizer", "t"), "--tokenizer counts the text of"),
        (("--synthetic", 5, "--rate", 1, "--slo", "ttft=1"), "--slo ttft=1: write ttfet=SECONDS"),
        (("--synthetic", 5, "--rate", 1, "--slo", "map,tbt=1"), "--slo map: write ttfet=SECONDS"),
    ],
)
def test_options_that_do_not_fit_are_exit_code_2(
    run_cli: RunCli, options: tuple[object, ...], message: str
) -> None:
    ran = run_cli("simulate", "--tier-map", MAP, *options)
    assert ran.code == 2
    assert message in ran.err


def test_claude_code_conversations_are_scaled_to_a_window_and_that_is_stated(
    run_cli: RunCli,
) -> None:
    options = ("--synthetic", 20, "--like", "claude-code", "--rate", 0.1, "--tool-gaps", 0)
    size = ("--window", 32_768, "--fitting", 0.8, "--max-turns", 6)
    ran = run_cli("simulate", "--tier-map", MAP, *options, *size)
    assert ran.code == 0
    scaled = " ".join(line.strip() for line in ran.out.splitlines())
    assert "scaled: all lengths times 0." in scaled
    assert "80% of the conversations fit whole in 32,768 tokens" in scaled


def test_a_policy_is_played_with_parameters_of_its_own(run_cli: RunCli, tmp_path: Path) -> None:
    names = ("coin-flip:error_rate=1", "coin-flip:error_rate=0", "conserve-blind")
    policies = [word for name in names for word in ("--policy", name)]
    ran = run_cli(*SYNTHETIC, *policies, "--figures", tmp_path, "--json")
    always, never, blind = json.loads(ran.out)["runs"]
    assert (always["policy"], always["params"]) == ("coin-flip", {"error_rate": 1})
    assert always["summary"]["turns_by_reason"] == {"first_turn": 30, "offloaded": 120}
    assert never["summary"] == blind["summary"]
    assert len(list(tmp_path.glob("power_*.svg"))) == 3
    kept = json.loads(run_cli(*SYNTHETIC, "--policy", "conserve:", "--json").out)
    assert kept["params"] == {"max_local_append_tokens": 2048}, "the tier map's own"


def test_a_run_in_which_nothing_is_served_says_why_and_fails(
    run_cli: RunCli, tmp_path: Path
) -> None:
    ran = run_cli(*SYNTHETIC, "--kv-capacity-tokens", 100, "--figures", tmp_path)
    assert ran.code == 1
    assert "30 not answered: too_long" in ran.out
    assert "no turn was served" in ran.err
    ran = run_cli(*SYNTHETIC, "--kv-capacity-tokens", 100, "--json")
    assert (ran.code, json.loads(ran.out)["answered"]) == (1, 0.0)


def test_a_run_is_judged_by_the_maps_targets_or_by_ones_own(run_cli: RunCli) -> None:
    papers = json.loads(run_cli(*SYNTHETIC, "--json").out)
    assert papers["judged_by"] == "5 times the mean run alone (the paper's)"
    assert papers["attained"] is None
    assert papers["alone_on"] == "one A40 of tier prefill (profile a40-qwen3-0.6b-300w)"
    maps = json.loads(run_cli(*SYNTHETIC, "--slo", "map", "--json").out)
    assert maps["judged_by"] == "the tier map's slo"
    assert maps["summary"]["ttfet"]["slo_s"] == 8.0
    assert maps["summary"]["ttfet"]["p95_s"] == papers["summary"]["ttfet"]["p95_s"]
    own = json.loads(run_cli(*SYNTHETIC, "--slo", "ttfet=4", "--slo", "tbt=0.02", "--json").out)
    summary = own["summary"]
    assert (summary["ttfet"]["slo_s"], summary["last_turn_tbt"]["slo_s"]) == (4.0, 0.02)
    assert (summary["e2e"]["slo_s"], summary["e2e"]["slo_attainment"]) == (None, None)
    shares = [summary[name]["slo_attainment"] for name in ("ttfet", "last_turn_tbt")]
    assert sum(shares) - 1 <= own["attained"] <= min(shares) < 1
    out = " ".join(run_cli(*SYNTHETIC, "--slo", "ttfet=4,tbt=0.02").out.split())
    assert f"{own['attained']:.1%} of the conversations keep all these targets" in out
    assert "takes alone on one A40 of tier prefill (profile a40-qwen3-0.6b-300w); on another" in out
    policies = ("--policy", "conserve", "--policy", "colocated")
    several = " ".join(run_cli(*SYNTHETIC, *policies, "--slo", "ttfet=4,tbt=0.02").out.split())
    assert "met: TTFET 4 s and TBT 0.02 s (--slo)" in several
    assert f" {own['attained']:.1%} " in several


def test_a_map_without_targets_has_none_to_judge_by(run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(re.sub("^slo: .*", "", MAP.read_text(), flags=re.M))
    ran = run_cli("simulate", "--tier-map", path, *SYNTHETIC[3:], "--slo", "map")
    assert ran.code == 2
    assert "has no slo; give ttfet=SECONDS" in ran.err


def test_one_is_not_said_in_the_plural(run_cli: RunCli) -> None:
    out = run_cli(*SYNTHETIC[:3], "--synthetic", 1, "--rate", 1).out
    assert "1 conversation: 1 answered" in out
    assert "1 KV transfer; " in out
    assert " an output token" in " ".join(out.split())


def test_a_folder_that_cannot_be_written_is_exit_code_2(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = run_cli(*SYNTHETIC, "--figures", tmp_path / "file")
    assert ran.code == 2
    assert "cannot be written" in ran.err


def test_a_budget_is_kept_if_asked_for(run_cli: RunCli) -> None:
    words = (
        "simulate",
        "--tier-map",
        MAP.with_name("a40_capped.yaml"),
        "--synthetic",
        "40",
        "--rate",
        "2",
    )
    budget = json.loads(run_cli(*words, "--keep-budget", "--json").out)["budget"]
    assert budget["power_budget_w"] == 900
    assert budget["num_periods"] > 10
    assert "budget (modelled): 900 W; more in" in run_cli(*words, "--keep-budget").out
    assert json.loads(run_cli(*words, "--json").out)["budget"] is None
    ran = run_cli(
        "simulate",
        "--tier-map",
        MAP.with_name("cpu_local.yaml"),
        "--synthetic",
        "4",
        "--keep-budget",
    )
    assert ran.code == 2
    assert "power_budget_w" in ran.err


def test_an_energy_budget_that_is_missed_is_told(run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    budget = "energy_budget_j_per_output_token: 0.5"
    path.write_text(re.sub("^power_budget_w: 900.*", budget, MAP.read_text(), flags=re.M))
    options = ("simulate", "--tier-map", path, "--synthetic", 20, "--rate", 1, "--keep-budget")
    taken = json.loads(run_cli(*options, "--json").out)["budget"]
    assert taken["energy_budget_j_per_output_token"] == 0.5
    assert taken["output_token_j"] > 0.5
    out = run_cli(*options).out
    assert f"0.5 J an output token; {taken['output_token_j']:.4g} taken: missed by" in out
    assert "more in" not in out, "there is no power budget to be exceeded"
    path.write_text(path.read_text().replace(budget, "energy_budget_j_per_output_token: 500"))
    assert " taken: kept" in run_cli(*options).out


def test_no_key_of_agents_is_needed_where_none_runs(run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(MAP.with_name("a40_l4.yaml").read_text() + "energy: {}\n")
    asked = ("simulate", "--tier-map", path, "--synthetic", 2, "--rate", 0.2)
    assert run_cli(*asked).code == 0
    for served in (("launch", "--dry-run", "--tier-map", path), ("tiers", "validate", path)):
        ran = run_cli(*served)
        assert ran.code == 2
        assert "would ask for no key" in ran.err
