"""Workers whose roles bend, KV that moves back, and prefills that let answers go on between."""

import pytest

from conserve_sglang.policy import PlacementReason
from conserve_sglang.sim import ConversationRecord, Deployment, Simulation
from conserve_sglang.sim.link import moved_twice_s
from tests.sim.builders import PERF, a_deployment, a_plan, play


def test_a_wrong_turn_goes_there_and_back() -> None:
    plan = a_plan("a", (16_000, 100), (67, 50))
    right = play(a_deployment("p0", "d0", policy="coin-flip", error_rate=0), [plan])["a"]
    wrong = play(a_deployment("p0", "d0", policy="coin-flip", error_rate=1), [plan])["a"]
    assert [turn.reason for turn in wrong.turns] == [
        PlacementReason.FIRST_TURN,
        PlacementReason.OFFLOADED,
    ]
    assert wrong.turns[1].decoder == wrong.turns[0].decoder == "d0"
    context = 16_100
    there = PERF.transfer_s(context) + moved_twice_s(context + 67)
    back = PERF.transfer_s(67)
    assert wrong.turns[1].ttft_s == pytest.approx(right.turns[1].ttft_s + there + back)


def test_a_prompt_spilled_to_a_decoder_is_prefilled_there() -> None:
    plans = [a_plan(f"c{n}", (16_000, 200), at=0.01 * n) for n in range(8)]
    records = play(a_deployment("p0", "d0", "d1", policy="work-conserving"), plans)
    turns = [record.turns[0] for record in records.values()]
    assert {turn.reason for turn in turns} == {PlacementReason.FIRST_TURN}, "nothing seen yet"
    later = [a_plan(f"e{n}", (16_000, 200), at=60 + 0.01 * n) for n in range(8)]
    records = play(a_deployment("p0", "d0", "d1", policy="work-conserving"), plans + later)
    spilled = [
        record.turns[0]
        for record in records.values()
        if record.turns[0].reason is PlacementReason.SPILLED
    ]
    assert spilled
    assert all(turn.prefiller is None for turn in spilled)
    waits = [max(r.turns[0].ttft_s for n, r in records.items() if n[0] == x) for x in "ce"]
    assert waits[1] < 0.7 * waits[0]


def test_a_conversation_kept_on_its_prefiller_is_decoded_there_between_prompts() -> None:
    plans = [a_plan(f"c{n}", (4_000, 400), (67, 100), at=0.3 * n) for n in range(20)]
    deployment = a_deployment("p0", "d0", policy="work-conserving-tails")
    records = play(deployment, plans)
    kept = [r for r in records.values() if r.turns[0].decoder == "p0"]
    assert 0 < len(kept) < 20
    assert all(turn.prefiller is None for record in kept for turn in record.turns)
    assert {turn.decoder for record in kept for turn in record.turns} == {"p0"}


def longest_gap(interval: int) -> tuple[float, float]:
    """Of an answer on a worker that prefills a long prompt meanwhile; and that one's TTFT."""
    deployment = a_deployment("m0", policy="colocated")
    worker = deployment.workers[0]
    fields = {name: getattr(worker, name) for name in worker.__dataclass_fields__}
    slow = type(worker)(**{**fields, "prefill_decode_interval": interval})
    records = play(
        Deployment(workers=(slow,), policy=deployment.policy, settings=deployment.settings),
        [a_plan("answers", (100, 400)), a_plan("prompt", (29_440, 2), at=1.0)],
    )
    gaps = records["answers"].last_turn_gaps
    return max(gap.last_s for gap in gaps), records["prompt"].turns[0].ttft_s


def test_decode_steps_between_prefill_steps_shorten_stalls() -> None:
    stalled_s, ttft_s = longest_gap(0)
    shorter_s, later_s = longest_gap(4)
    whole_s = PERF.prefill(0, 29_440)
    assert stalled_s == pytest.approx(whole_s, rel=0.05)
    assert shorter_s < 0.25 * whole_s, "the costliest of ten chunks"
    assert later_s > ttft_s + 30 * PERF.decode_step(1, 100)


def test_when_a_prefill_began_is_written_down() -> None:
    plans = [a_plan("a", (16_000, 10)), a_plan("b", (16_000, 10))]
    records = play(a_deployment("p0", "d0"), plans)
    a, b = records["a"].turns[0], records["b"].turns[0]
    assert a.prefill_at_s == 0.0
    # After five full steps; what is left of the first prompt leaves room for the second.
    assert b.prefill_at_s == pytest.approx(
        PERF.whole_prefill(5 * 2944) * PERF.prefill(0, 16_000) / PERF.whole_prefill(16_000)
    )


def test_a_prefiller_that_keeps_no_prompts_begins_at_the_front() -> None:
    plan = a_plan("a", (16_000, 100), (67, 50))
    ttft_s = {}
    for keeps in (True, False):
        deployment = a_deployment("p0", "d0", policy="stock-pd")
        workers = []
        for worker in deployment.workers:
            fields = {name: getattr(worker, name) for name in worker.__dataclass_fields__}
            workers.append(type(worker)(**{**fields, "keeps_prompts": keeps}))
        records: list[ConversationRecord] = []
        simulation = Simulation(
            Deployment(
                workers=tuple(workers), policy=deployment.policy, settings=deployment.settings
            ),
            records.append,
        )
        simulation.run([plan])
        ttft_s[keeps] = records[0].turns[1].ttft_s
    assert ttft_s[False] - ttft_s[True] == pytest.approx(
        PERF.prefill(0, 16_167) - PERF.prefill(16_000, 16_167)
    )
