"""The comparison of policies: what it counts, and that it plays what it says."""

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest

from bench.paper import findings, run, show
from bench.paper.candidates import CANDIDATES, CAPS, THREE_TIERS, deployment
from bench.paper.measure import alone_of, figures_of, play, predictor_error, slo_of
from bench.paper.workloads import Workload, bursty, rate_of_load_1
from conserve_sglang.core.worker import Role
from conserve_sglang.sim import (
    A40_QWEN3_0_6B,
    A40_QWEN3_0_6B_200W,
    ConversationRecord,
    Outcome,
    Simulation,
)
from tests.sim.builders import a_plan

PLANS = tuple(a_plan(f"c{n}", (12_000 + 400 * n, 60), (67, 90), (67, 40)) for n in range(24))
ALONE = alone_of(PLANS)
SLO = slo_of(ALONE)
SMALL = Workload(
    name="small", statement="made up", plans=PLANS, loads=(0.5, 2.0), rate_of_load_1=1.0
)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda each: each.name)
def test_every_candidate_answers_every_conversation(candidate: Any) -> None:
    figures = play(deployment(candidate, "300/200", SLO), SMALL.timed(2.0, 0), ALONE)
    assert figures["unanswered"] == 0
    assert sum(figures["reasons"].values()) == 3 * len(PLANS)
    for accounting in ("one_clock", "papers"):
        assert figures[accounting]["ttfet_p95"] >= figures[accounting]["ttfet_p50"] >= 0.9
    for name in ("ttfet_p50", "ttfet_p95", "e2e_p95"):
        assert figures["papers"][name] <= figures["one_clock"][name], "it leaves a wait out"
    assert figures["papers"]["tbt_p95"] == figures["one_clock"]["tbt_p95"]
    energy = figures["energy"]
    assert 4 * 70 < energy["mean_w"] < 1000, "between four idle GPUs and the caps"
    assert energy["tokens_per_j"] > energy["output_tokens_per_j"] > 0


@pytest.mark.parametrize("caps", CAPS)
def test_caps_are_those_of_the_paper_for_every_candidate(caps: str) -> None:
    prefill, decode = caps.split("/")
    of_watts = {"300": A40_QWEN3_0_6B, "200": A40_QWEN3_0_6B_200W}
    for candidate in CANDIDATES:
        workers = deployment(candidate, caps, SLO).workers
        assert [each.perf for each in workers] == [of_watts[prefill], *[of_watts[decode]] * 3]
        roles = [each.spec.role for each in workers]
        expected = [Role.MIXED] * 4 if candidate.is_mixed else [Role.PREFILL, *[Role.DECODE] * 3]
        assert roles == expected


SHORT_TOKENS = 16_000
SERVES_TIERS = [each for each in CANDIDATES if each.name in {"work-conserving", "collocated"}]


@pytest.mark.parametrize("candidate", SERVES_TIERS, ids=lambda each: each.name)
def test_with_three_tiers_long_contexts_stay_off_the_one_for_short_ones(candidate: Any) -> None:
    played = deployment(candidate, THREE_TIERS, SLO, short_tokens=SHORT_TOKENS)
    bounds = [each.spec.max_context_tokens for each in played.workers]
    assert bounds == [None, SHORT_TOKENS, None, None]
    assert [each.perf for each in played.workers] == [
        A40_QWEN3_0_6B, A40_QWEN3_0_6B_200W, A40_QWEN3_0_6B, A40_QWEN3_0_6B,
    ]  # fmt: skip
    assert len({each.spec.tier for each in played.workers}) == (2 if candidate.is_mixed else 3)
    records: list[ConversationRecord] = []
    Simulation(played, records.append).run(SMALL.timed(0.2, 0))
    short = played.workers[1].spec.worker_id
    first = [record.turns[0] for record in records]
    there = [turn.input_tokens for turn in first if turn.decoder == short]
    elsewhere = [turn.input_tokens for turn in first if turn.decoder != short]
    assert there
    assert max(there) <= SHORT_TOKENS < max(elsewhere)


def test_rows_that_are_played_again_take_the_place_of_the_saved_ones() -> None:
    saved = [a_row(name, 4, 5) | {"seeds": 3} for name in ("conserve", "collocated")]
    other = a_row("collocated", 9, 9) | {"caps_w": THREE_TIERS, "seeds": 1}
    new = a_row("conserve", 3, 2) | {"seeds": 1}
    assert run.merged(saved, [other, new]) == [saved[1], new, other]


def test_a_conversation_that_was_not_answered_has_missed_its_targets() -> None:
    records = [
        ConversationRecord(plan=PLANS[0], outcome=Outcome.REJECTED, turns=(), last_turn_gaps=())
    ]
    done: list[ConversationRecord] = []
    play_into(done)
    figures = figures_of([*done, *records], ALONE | alone_of(PLANS[:1]))
    assert figures["unanswered"] == 1
    assert figures["one_clock"]["slo"] == pytest.approx(len(done) / (len(done) + 1))
    assert figures["one_clock"]["ttfet_geomean"] == inf


def play_into(records: list[ConversationRecord]) -> None:
    Simulation(deployment(CANDIDATES[0], "300/300", SLO), records.append).run(PLANS[:4])


def test_tool_gaps_count_for_nobody() -> None:
    plans = [a_plan("c", (2000, 50), (67, 40), gap_s=30.0)]
    by_itself = alone_of(plans)
    assert by_itself["c"].e2e_s < 5
    figures = play(deployment(CANDIDATES[0], "300/300", SLO), plans, by_itself)
    assert figures["one_clock"]["e2e_p95"] == pytest.approx(1.0)


def test_the_paper_s_accounting_leaves_out_the_wait_for_the_first_prefill() -> None:
    plans = [a_plan(f"c{n}", (16_000, 20), (67, 20)) for n in range(6)]
    by_itself = alone_of(plans)
    blind = next(each for each in CANDIDATES if each.name == "ConServe, blind")
    figures = play(deployment(blind, "300/300", SLO), plans, by_itself)
    waited = figures["one_clock"]["ttfet_p95"] - figures["papers"]["ttfet_p95"]
    assert waited * by_itself["c0"].ttfet_s == pytest.approx(
        5 * A40_QWEN3_0_6B.prefill(0, 16_000), rel=0.1
    )


def test_a_load_of_1_keeps_four_gpus_busy() -> None:
    long = tuple(a_plan(f"c{n}", (32_768, 1)) for n in range(3))
    assert rate_of_load_1(long) == pytest.approx(4 / 1.97, rel=0.01)


def test_the_predictor_s_error() -> None:
    error = predictor_error([a_plan("c", (10, 100), (10, 50), (10, 150))])
    assert error["turns"] == 2
    assert (error["p50"], error["p95"]) == (0.5, 1.0)


def test_the_bursty_mix_is_generated_and_always_the_same() -> None:
    workload = bursty(Path("nowhere"))
    assert workload.plans == bursty(Path("nowhere")).plans
    first = [plan.arrived_at_s for plan in workload.timed(1.0, 3)]
    assert first == [plan.arrived_at_s for plan in workload.timed(1.0, 3)]
    assert first != [plan.arrived_at_s for plan in workload.timed(1.0, 4)]


def a_row(policy: str, ttfet: float, tbt: float, *, ours: bool = False) -> dict[str, Any]:
    figures = {"ttfet_p95": [ttfet] * 3, "tbt_p95": [tbt] * 3, "slo": [0.5, 0.4, 0.6]}
    return {
        "policy": policy, "caps_w": "300/300", "load": 1.634, "interval": 0, "ours": ours,
        "one_clock": figures, "papers": figures, "simulated_only": False,
    }  # fmt: skip


def test_the_front_holds_whom_nobody_beats() -> None:
    rows = [a_row("a", 1, 3), a_row("b", 2, 2), a_row("c", 2, 3), a_row("d", 3, 1)]
    assert findings.front(rows) == {"a", "b", "d"}
    mine = a_row("mine", 0.5, 9, ours=True)
    assert findings.best([*rows, mine], "ttfet_p95", ours=False) == ("a", 1)
    assert findings.best([*rows, mine], "ttfet_p95", ours=True) == ("mine", 0.5)


def test_runs_are_kept_and_averaged_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "CACHE", tmp_path / "cache")
    sweep = run.Sweep(SMALL, ALONE, range(2), CANDIDATES[:1])
    rows = list(sweep.rows(["300/300"], 4))
    assert [(row["load"], row["interval"]) for row in rows] == [
        (0.5, 0), (2.0, 0), (0.5, 4), (2.0, 4),
    ]  # fmt: skip
    mean, least, most = rows[1]["one_clock"]["ttfet_p95"]
    assert least < mean < most, "seeds differ"
    monkeypatch.setattr(run, "play", None)
    assert list(sweep.rows(["300/300"], 4)) == rows, "from what was kept"
    record = {"workload": "made up"}
    text = run._compact(record, rows)
    assert json.loads(text) == record | {"rows": rows}


def test_each_of_ours_is_set_beside_the_baseline_with_the_least_ttfet() -> None:
    rows = [
        row | {"energy": {"tokens_per_j": joules, "idle_share": 0.2}}
        for row, joules in (
            (a_row("a", 4, 5), 10.0),
            (a_row("b", 6, 2), 20.0),
            (a_row("mine", 3, 6, ours=True), 11.0),
        )
    ]
    rival, ((mine, changes),) = findings.beside(rows, 1.634, "300/300")
    assert (rival["policy"], mine["policy"]) == ("a", "mine")
    assert changes == pytest.approx([-0.25, 0.2, 0.1])
    found = findings.at_equal_slo(rows, 1.634, "300/300", "300/300")
    assert found is not None
    assert found[:3] == ("b", 20.0, "mine")
    assert found[3:] == pytest.approx((-0.45, 0.25))


def test_tables_are_written_from_what_was_saved() -> None:
    rows = [a_row("collocated", 4, 5), a_row("mine", 3, 2, ours=True)]
    lines = list(show._goals(rows, [1.634]))
    assert lines[-1].startswith("| 1.634 | 4.00 collocated | 3.00 mine | 5.00 collocated |")
    assert lines[-1].endswith("| mine |")
