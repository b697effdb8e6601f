"""Cases whose times can be written down."""

import random

import pytest

from conserve_sglang.core.stats import percentile
from conserve_sglang.policy import PlacementReason
from conserve_sglang.sim import Outcome, alone, gap_percentile_s
from conserve_sglang.sim.perf_model import run_length
from conserve_sglang.workload import (
    first_turns,
    mini_swe_conversations,
    poisson_arrivals,
    with_arrivals,
)
from tests.sim.builders import PERF, a_deployment, a_plan, play


def decode_s(num_requests: int, kv_tokens: int, steps: int) -> float:
    """Steps one by one, as slowly as can be."""
    return sum(PERF.decode_step(num_requests, kv_tokens + i * num_requests) for i in range(steps))


def test_a_conversation_on_a_mixed_worker_takes_what_it_takes_alone() -> None:
    plan = a_plan("a", (16_000, 120), (67, 40), (3000, 1500), gap_s=2.0)
    record = play(a_deployment("m0", policy="colocated"), [plan])["a"]
    expected = alone(plan, PERF)
    assert record.ttfet_s == pytest.approx(expected.ttfet_s, rel=1e-12)
    assert record.e2e_s == pytest.approx(expected.e2e_s, rel=1e-12)
    assert record.last_turn_tbt_s == pytest.approx(expected.last_turn_tbt_s, rel=1e-12)


def test_alone_is_the_sum_of_single_steps() -> None:
    plan = a_plan("a", (1024, 100))
    assert alone(plan, PERF).ttfet_s == 0.0365
    assert alone(plan, PERF).e2e_s == pytest.approx(0.0365 + decode_s(1, 1025, 99))


def test_phase_one_adds_one_kv_transfer_and_the_tail_none() -> None:
    plan = a_plan("a", (16_384, 100), (67, 50))
    record = play(a_deployment("p0", "d0"), [plan])["a"]
    first, second = record.turns
    transfer_s = 16_384 * 0.985e-6 + 5.27e-3
    assert first.ttft_s == pytest.approx(0.6217 + transfer_s)
    assert second.ttft_s == pytest.approx(PERF.prefill(16_484, 16_551))
    assert (first.prefiller, second.prefiller) == ("p0", None)
    assert (first.cached_tokens, second.cached_tokens) == (0, 16_484)
    assert second.reason is PlacementReason.PINNED


def test_two_turns_of_a_batch_share_their_decode_steps() -> None:
    plans = [a_plan("a", (1024, 50)), a_plan("b", (1024, 80))]
    records = play(a_deployment("m0", policy="colocated"), plans)
    # "a" came first and began alone; "b" waited for its prefill.
    assert records["a"].ttfet_s == 0.0365
    assert records["b"].ttfet_s == pytest.approx(2 * 0.0365)
    together = decode_s(2, 2 * 1025, 49)
    assert records["a"].e2e_s == pytest.approx(0.073 + together)
    assert records["b"].e2e_s == pytest.approx(0.073 + together + decode_s(1, 1025 + 49, 30))


def test_waiting_prompts_share_a_prefill_step() -> None:
    plans = [
        a_plan("a", (2048, 5)),
        a_plan("b", (1024, 5), at=0.01),
        a_plan("c", (1024, 5), at=0.02),
    ]
    records = play(a_deployment("m0", policy="colocated"), plans)
    shared_s = 2 * 0.0365 - 14.5e-3
    assert records["b"].turns[0].first_token_at_s == pytest.approx(0.0577 + shared_s)
    assert records["c"].turns[0].first_token_at_s == records["b"].turns[0].first_token_at_s


def test_prompts_queue_at_the_prefiller() -> None:
    tokens = 2 * 2944
    plans = [a_plan(name, (tokens, 2)) for name in "abc"]
    records = play(a_deployment("p0", "d0", "d1", "d2"), plans)
    prefill_s, transfer_s = PERF.whole_prefill(tokens), PERF.transfer_s(tokens)
    for number, name in enumerate("abc", start=1):
        assert records[name].ttfet_s == pytest.approx(number * prefill_s + transfer_s)


def test_transfers_to_one_decoder_wait_for_each_other() -> None:
    plans = [a_plan(name, (65_536, 2)) for name in "ab"]
    records = play(a_deployment("p0", "p1", "d0", chunk_tokens=65_536), plans)
    busy_s = PERF.transfer_occupancy(65_536)
    first = 6.8771 + busy_s + PERF.transfer_latency(65_536)
    assert records["a"].ttfet_s == pytest.approx(first)
    # It arrives while the first one decodes, and joins at the end of that step.
    assert first + busy_s <= records["b"].ttfet_s <= first + busy_s + 0.03


def test_an_append_stalls_the_batch_for_its_prefill() -> None:
    plans = [a_plan("a", (1000, 200)), a_plan("b", (2000, 2), at=1.0)]
    records = play(a_deployment("m0", policy="colocated"), plans)
    worst = gap_percentile_s(records["a"].last_turn_gaps, 100)
    step_s = PERF.decode_step(2, 3100)
    assert worst == pytest.approx(PERF.whole_prefill(2000) + step_s, rel=0.02)
    assert gap_percentile_s(records["a"].last_turn_gaps, 50) == pytest.approx(0.0125, rel=0.05)


def test_gap_runs_cover_the_time_from_first_to_last_token() -> None:
    plans = [a_plan(f"c{i}", (3000, 400), (67, 1200), at=0.4 * i, gap_s=0.3) for i in range(12)]
    for record in play(a_deployment("p0", "d0", "d1"), plans).values():
        last, gaps = record.turns[-1], record.last_turn_gaps
        assert sum(run.num_gaps for run in gaps) == last.output_tokens - 1
        total_s = sum(run.total_s for run in gaps)
        assert total_s == pytest.approx(last.last_token_at_s - last.first_token_at_s)
        assert all(run.first_s > 0.012 for run in gaps)


def test_a_run_of_steps_is_the_sum_of_its_steps() -> None:
    first = PERF.decode_step(7, 100_000)
    growth = 7 * PERF.decode_s_per_kv_token
    assert run_length(500, first, growth) == pytest.approx(decode_s(7, 100_000, 500))


def test_a_lost_prefix_starts_a_new_phase_one() -> None:
    """The decoder's pool is smaller than the router believes, so it evicts the idle one."""
    plans = [
        a_plan("a", (6000, 10), (67, 10), gap_s=20.0),
        a_plan("b", (6000, 10), at=5.0),
    ]
    deployment = a_deployment("p0", "d0", capacity=100_000, kv_pool_tokens=7000)
    second = play(deployment, plans)["a"].turns[1]
    assert second.reason is PlacementReason.PREFIX_MISSING
    assert (second.prefiller, second.attempts, second.cached_tokens) == ("p0", 2, 0)


def test_a_large_append_moves_only_the_delta() -> None:
    plan = a_plan("a", (4096, 10), (4096, 10))
    second = play(a_deployment("p0", "d0"), [plan])["a"].turns[1]
    assert second.reason is PlacementReason.LARGE_APPEND
    assert second.cached_tokens == 4106
    # The prefiller still has turn 1's prompt, and computes the answer and the append.
    assert second.ttft_s == pytest.approx(PERF.prefill(4096, 8202) + PERF.transfer_s(4096))


def test_an_answer_longer_than_the_room_held_for_it_gets_more() -> None:
    plan = a_plan("a", (1000, 3000))
    record = play(a_deployment("m0", policy="colocated", capacity=4100), [plan])["a"]
    assert record.outcome is Outcome.ANSWERED
    assert record.e2e_s == pytest.approx(alone(plan, PERF).e2e_s)


def test_without_room_for_more_a_turn_is_retracted_and_comes_back() -> None:
    plans = [a_plan("a", (1000, 1800)), a_plan("b", (1000, 1800), at=0.01)]
    records = play(a_deployment("m0", policy="colocated", capacity=4100), plans)
    for record in records.values():
        assert record.outcome is Outcome.ANSWERED
        assert sum(run.num_gaps for run in record.last_turn_gaps) == 1799
    worst = [gap_percentile_s(r.last_turn_gaps, 100) for r in records.values()]
    assert percentile(sorted(worst), 100) > 5, "one of them waited for the other's end"


def test_what_fits_nowhere_is_not_answered() -> None:
    plans = [a_plan("a", (900, 300)), a_plan("b", (2000, 1))]
    records = play(a_deployment("p0", "d0", capacity=1000), plans)
    assert records["a"].outcome is Outcome.NEVER_FITS
    assert records["b"].outcome is Outcome.REJECTED
    assert records["b"].why == "too_long"


def test_one_prefiller_saturates_near_the_rate_the_paper_names() -> None:
    """1.634 conversations/s for the paper's prompts; generated ones are like them. Not tuned."""
    rng = random.Random(7)
    plans = first_turns(mini_swe_conversations(300, rng), 1)
    names = ["p0", *(f"d{n}" for n in range(20))]
    records = play(a_deployment(*names), with_arrivals(plans, poisson_arrivals(4.0, rng)))
    first_tokens = sorted(record.turns[0].first_token_at_s for record in records.values())
    rate = (len(first_tokens) - 1) / (first_tokens[-1] - first_tokens[0])
    assert rate == pytest.approx(1.634, rel=0.12)
