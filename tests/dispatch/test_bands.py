"""Decode tiers for short and for long contexts, under every policy."""

from dataclasses import replace

import pytest

from conserve_sglang.core.ids import TurnId, WorkerId
from conserve_sglang.dispatch import (
    DispatchSettings,
    FirstToken,
    SendTurn,
    TurnDone,
    WorkerLost,
    WorkerUp,
)
from conserve_sglang.policy import POLICIES
from tests.builders import D0, D1, D2, Desk, a_worker, an_arrival

SETTINGS = DispatchSettings(reserve_output_tokens=100, max_prefill_backlog_tokens=10**6)


def a_desk(policy: str, capacity: int = 10_000, **bounds: int | None) -> Desk:
    desk = Desk("p0", policy=policy, settings=SETTINGS, capacity=capacity)
    for name, bound in bounds.items():
        desk.tell(WorkerUp(spec=replace(a_worker(name, capacity), max_context_tokens=bound)))
    return desk


def decoder_of(desk: Desk, turn: int, tokens: int) -> WorkerId:
    sent = [c for c in desk.tell(an_arrival(turn, f"c{turn}", tokens)) if isinstance(c, SendTurn)]
    assert len(sent) == 1
    return sent[0].decoder


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"round-robin"}))
def test_contexts_go_to_the_tier_that_is_for_them(policy: str) -> None:
    desk = a_desk(policy, d0=2000, d1=5000, d2=None)
    if policy == "work-conserving-tails":  # with KV of its own a prefiller would do, too
        desk.tell(WorkerUp(spec=replace(a_worker("p0", 1), max_context_tokens=None)))
    placed = [decoder_of(desk, n, tokens) for n, tokens in enumerate((1900, 1901, 4900, 4901))]
    assert placed == [D0, D1, D1, D2]


def test_a_full_tier_sends_its_contexts_elsewhere() -> None:
    desk = a_desk("conserve", capacity=2500, d0=2000, d1=None)
    assert [decoder_of(desk, turn, 1500) for turn in (1, 2)] == [D0, D1]


def test_a_tier_that_is_gone_is_done_without() -> None:
    desk = a_desk("conserve", d0=2000, d1=5000)
    assert decoder_of(desk, 1, 9000) in {D0, D1}, "longer than any bound"
    desk.tell(WorkerLost(worker_id=D0))
    assert decoder_of(desk, 2, 500) == D1


def test_a_conversation_that_outgrows_its_tier_stays_where_its_kv_is() -> None:
    desk = a_desk("conserve", d0=2000, d1=None)
    assert decoder_of(desk, 1, 1800) == D0
    desk.tell(FirstToken(turn_id=TurnId(1)))
    desk.tell(TurnDone(turn_id=TurnId(1), prompt_tokens=1800, output_tokens=90, cached_tokens=0))
    sent = desk.tell(an_arrival(2, "c1", 3000))
    assert [c.decoder for c in sent if isinstance(c, SendTurn)] == [D0]
