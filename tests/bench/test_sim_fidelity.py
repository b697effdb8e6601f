"""The fidelity bench compares what it says it compares."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from bench.sim_fidelity import compare, live, simulated
from bench.sim_fidelity.cluster import deployments
from bench.sim_fidelity.live import LiveConversation, LiveTurn, Run
from bench.sim_fidelity.priority import family_of
from bench.sim_fidelity.simulated import NOTHING, Fronts
from conserve_sglang.profiles import shipped_profile
from conserve_sglang.sim import perf_model_of

ROOT = Path(__file__).parents[2]
MAP = ROOT / "tier_maps" / "cpu_local.yaml"
PROFILE = shipped_profile("a40-qwen3-0.6b-300w")
PERF = perf_model_of(PROFILE)
TURN = LiveTurn(
    prompt_tokens=1000,
    cached_tokens=0,
    output_tokens=11,
    prefiller="prefill-0",
    decoder="decode-0",
    ttft_s=0.2,
    tbt_s=0.01,
    e2e_s=0.3,
)


def a_run(*ttfts_s: float, policy: str = "conserve") -> Run:
    """Conversations of one turn each, far apart."""
    return Run(
        policy=policy,
        conversations=tuple(
            LiveConversation(
                arrived_at_s=100.0 * number,
                ttfet_s=ttft_s,
                e2e_s=ttft_s + 0.1,
                turns=(replace(TURN, ttft_s=ttft_s, e2e_s=ttft_s + 0.1),),
            )
            for number, ttft_s in enumerate(ttfts_s)
        ),
        load_average=0.5,
    )


def test_errors_are_relative_to_what_was_live() -> None:
    pairs = [(a_run(1.0, 2.0, 4.0), a_run(1.1, 1.0, 4.0))]
    found = compare.errors_of(pairs, compare.MEASURES["TTFT"])
    assert found.median_error == pytest.approx(0.1)
    assert found.bias == pytest.approx(0.0)
    assert found.p10 == pytest.approx(-0.5)
    assert found.p90 == pytest.approx(0.1)
    assert found.of_means == pytest.approx(6.1 / 7 - 1)
    assert found.noise == 0.0


def test_noise_is_how_far_runs_lie_from_each_other() -> None:
    pairs = [(a_run(value), a_run(1.0)) for value in (0.8, 1.0, 1.2)]
    assert compare.errors_of(pairs, compare.MEASURES["TTFT"]).noise == pytest.approx(0.2)


def test_only_policies_that_differ_beyond_noise_are_put_in_order() -> None:
    by_policy = {
        "a": [(a_run(1.0), a_run(3.0)), (a_run(1.2), a_run(3.0))],  # 1.1 within 9 %
        "b": [(a_run(1.15), a_run(1.0))],
        "c": [(a_run(2.0), a_run(2.0))],
    }
    order = compare.order_of(by_policy, compare.MEASURES["TTFT"])
    assert order.live == ("a", "b", "c")
    assert order.simulated == ("b", "c", "a")
    assert (order.pairs_alike, order.num_pairs) == (1, 2)  # a and b count as equal


def test_a_lone_turn_takes_in_the_simulator_what_it_was_measured_to_take() -> None:
    perf = PERF
    fronts = Fronts(turn_s=0.02, hand_over_s=0.1, step_s=0.001)
    run = simulated.simulate(a_run(0.2, 0.2), MAP, PROFILE, fronts)
    for one in run.conversations:
        expected = 0.02 + perf.prefill(0, 1000) + 0.1
        assert one.turns[0].ttft_s == pytest.approx(expected, rel=0.02)
        step_s = perf.decode_step(1, 1006) + 0.001
        assert one.turns[0].tbt_s == pytest.approx(step_s, rel=0.01)
        assert one.e2e_s == pytest.approx(one.turns[0].e2e_s)
    plain = simulated.simulate(a_run(0.2), MAP, PROFILE, NOTHING)
    assert plain.conversations[0].ttfet_s < run.conversations[0].ttfet_s - 0.1


def test_fronts_are_what_lone_turns_took_beyond_the_profile() -> None:
    perf = PERF
    moved = replace(TURN, ttft_s=0.3 + perf.prefill(0, 1000), tbt_s=perf.decode_step(1, 1005))
    tail = replace(
        TURN,
        prefiller=None,
        cached_tokens=900,
        ttft_s=0.05 + perf.prefill(900, 1000),
        tbt_s=perf.decode_step(1, 1005) + 0.002,
    )
    one = LiveConversation(arrived_at_s=0.0, ttfet_s=1.0, e2e_s=2.0, turns=(moved, tail, tail))
    fronts = simulated.fronts_of([Run(policy="x", conversations=(one,), load_average=0.0)], perf)
    assert fronts.turn_s == pytest.approx(0.05)
    assert fronts.hand_over_s == pytest.approx(0.25)
    assert fronts.step_s == pytest.approx(0.002)


def test_conversations_have_nothing_in_common_but_their_form() -> None:
    tickets = live.tickets(3)
    marks = {ticket.tools[0]["function"]["description"][:7] for ticket in tickets}
    assert len(marks) == live.NUM_CONVERSATIONS
    assert len({len(mark) for mark in marks}) == 1
    assert live.arrivals(1) == live.arrivals(1) != live.arrivals(2)
    assert live.arrivals(1)[0] == 0.0


def test_all_deployments_have_three_servers() -> None:
    for deployment in deployments():
        assert sum(tier["count"] for tier in deployment.tiers) == 3


def test_the_family_of_this_process_holds_it() -> None:
    assert os.getpid() in family_of(os.getppid())
