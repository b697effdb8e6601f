"""What the dispatcher does with more than it can take: bounds, whom they hit, and what it says."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.ids import ConversationId, TenantId, TurnId
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.dispatch import (
    Command,
    ConversationEnded,
    Dispatcher,
    DispatchSettings,
    Event,
    FailureCause,
    FirstToken,
    RejectTurn,
    ReleaseConversation,
    SendTurn,
    Tick,
    TurnArrived,
    TurnDone,
    TurnFailed,
    WorkerLost,
    WorkerUp,
)
from conserve_sglang.policy import make_policy
from conserve_sglang.policy.api import RejectReason
from tests.builders import D0, P0, P1, Desk, a_worker, an_arrival

A, B = TenantId("a"), TenantId("b")


def of(tenant: TenantId, turn: int, tokens: int = 1000, conversation: str = "") -> TurnArrived:
    return replace(an_arrival(turn, conversation or f"c{turn}", tokens), tenant=tenant)


def sent(commands: Sequence[Command]) -> list[int]:
    return [command.turn_id for command in commands if isinstance(command, SendTurn)]


def rejected(commands: Sequence[Command]) -> RejectTurn:
    (command,) = [each for each in commands if isinstance(each, RejectTurn)]
    return command


def finish(desk: Desk, turn: int, prompt: int = 1000) -> list[Command]:
    return desk.tell(FirstToken(turn_id=TurnId(turn))) + desk.tell(
        TurnDone(turn_id=TurnId(turn), prompt_tokens=prompt, output_tokens=10, cached_tokens=0)
    )


def a_full_prefiller(**bounds: int | None) -> Desk:
    """One prefiller at its bound with turn 0."""
    desk = Desk(
        "p0",
        capacity=100_000,
        settings=DispatchSettings(max_prefill_backlog_tokens=1000, **bounds),  # type: ignore[arg-type]
    )
    desk.tell(WorkerUp(spec=a_worker("d0", 100_000)))
    assert sent(desk.tell(of(A, 0))) == [0]
    return desk


# queues form here, not in the workers


def test_turns_wait_in_the_router_while_the_prefiller_has_enough() -> None:
    desk = a_full_prefiller()
    assert desk.tell(of(A, 1)) == []
    assert sent(desk.tell(FirstToken(turn_id=TurnId(0)))) == [1]


def test_a_prefiller_below_its_bound_takes_a_prompt_of_any_length() -> None:
    desk = a_full_prefiller()
    desk.tell(FirstToken(turn_id=TurnId(0)))
    assert sent(desk.tell(of(A, 1, 999))) == [1]
    assert sent(desk.tell(of(A, 2, 50_000))) == [2]
    assert desk.tell(of(A, 3, 1)) == []


def test_turns_go_to_the_prefiller_that_is_not_full() -> None:
    desk = a_full_prefiller()
    desk.tell(WorkerUp(spec=a_worker("p1")))
    (command,) = desk.tell(of(A, 1))
    assert isinstance(command, SendTurn)
    assert command.prefiller == P1 != P0


def test_tail_turns_do_not_wait_for_prefillers() -> None:
    desk = a_full_prefiller()
    finish(desk, 0)
    desk.tell(of(A, 1))
    assert sent(desk.tell(of(A, 2, 1100, "c0"))) == [2]


def test_a_stock_pd_turn_frees_its_prefiller_with_its_first_token() -> None:
    desk = Desk(
        "p0",
        policy="stock-pd",
        capacity=100_000,
        settings=DispatchSettings(max_prefill_backlog_tokens=1000),
    )
    desk.tell(WorkerUp(spec=a_worker("d0", 100_000)))
    desk.tell(of(A, 0))
    assert desk.tell(of(A, 1)) == []
    assert sent(desk.tell(FirstToken(turn_id=TurnId(0)))) == [1]


# bounds


def test_each_queue_has_a_bound_of_its_own() -> None:
    desk = a_full_prefiller(max_phase_one_turns=1, max_tail_turns=1)
    assert desk.tell(of(A, 1)) == []
    assert desk.tell(of(A, 2, 1100, "c0")) == [], "held: that is the other queue"
    assert rejected(desk.tell(of(A, 3))).reason is RejectReason.QUEUE_FULL
    assert rejected(desk.tell(of(A, 4, 1100, "c0"))).reason is RejectReason.QUEUE_FULL


def test_a_tenant_has_a_bound_of_its_own() -> None:
    desk = a_full_prefiller(max_turns_per_tenant=2)
    desk.tell(of(A, 1))
    desk.tell(of(A, 2, 1100, "c0"))
    assert rejected(desk.tell(of(A, 3))).turn_id == 3
    assert desk.tell(of(B, 4)) == []


def test_full_queue_pushes_out_the_latest_turn_of_whoever_fills_it() -> None:
    desk = a_full_prefiller(max_phase_one_turns=3)
    for turn in (1, 2, 3):
        desk.tell(of(A, turn))
    refused = rejected(desk.tell(of(B, 4)))
    assert (refused.turn_id, refused.reason) == (3, RejectReason.QUEUE_FULL)
    assert rejected(desk.tell(of(B, 5))).turn_id == 5, "one each of three: nobody has more"
    assert sent(finish(desk, 0)) == [1]


def test_full_queue_of_tail_turns_does_as_well() -> None:
    desk = a_full_prefiller(max_tail_turns=2)
    desk.tell(FirstToken(turn_id=TurnId(0)))
    desk.tell(of(B, 1))
    for turn in (2, 3):
        desk.tell(of(B, turn, 1100, "c1"))
    desk.tell(FirstToken(turn_id=TurnId(1)))
    desk.tell(of(A, 10))
    desk.tell(of(A, 11, 1100, "c10"))
    desk.tell(of(A, 12, 1100, "c10"))
    desk.tell(FirstToken(turn_id=TurnId(10)))
    desk.tell(of(B, 20))
    desk.tell(of(B, 21, 1100, "c20"))
    desk.tell(of(B, 22, 1100, "c20"))
    desk.tell(of(A, 30))
    assert rejected(desk.tell(of(B, 23, 1100, "c20"))).turn_id == 23


def test_turn_that_comes_back_from_its_workers_finds_room_in_a_full_queue() -> None:
    desk = a_full_prefiller(max_phase_one_turns=1)
    desk.tell(of(A, 1))
    desk.tell(WorkerLost(worker_id=P0))
    failed = TurnFailed(turn_id=TurnId(0), cause=FailureCause.PREFILLER_FAILED)
    assert desk.tell(failed) == []
    assert desk.dispatcher.queue_depths == {"phase_one": 2, "tail": 0, "retry": 0}
    assert sent(desk.tell(WorkerUp(spec=a_worker("p0")))) == [0]


def test_refused_turn_hears_when_its_tenants_queue_will_have_moved_on() -> None:
    desk = a_full_prefiller(max_phase_one_turns=40)
    for turn in range(1, 41):
        desk.tell(of(A, turn))
    for turn in range(20):
        desk.now += 0.5
        finish(desk, turn)
        desk.tell(of(A, 41 + turn))
    refused = rejected(desk.tell(of(A, 99)))
    assert refused.retry_after_s == pytest.approx(20.0, rel=0.05), "40 turns at 2 a second"
    other = rejected(desk.tell(of(B, 100)))
    assert other.turn_id == 60, "A's latest"
    again = rejected(desk.tell(of(A, 101)))
    assert again.retry_after_s == pytest.approx(39.0, rel=0.05), "half the rate is B's now"


# deadlines


def test_a_turn_may_ask_for_a_shorter_deadline_but_not_for_a_longer_one() -> None:
    desk = a_full_prefiller()
    desk.tell(replace(of(A, 1), deadline_s=5.0))
    desk.tell(replace(of(A, 2), deadline_s=500.0))
    desk.now = 5.0
    refused = rejected(desk.tell(Tick()))
    assert (refused.turn_id, refused.reason) == (1, RejectReason.QUEUE_TIMEOUT)
    assert refused.retry_after_s is not None
    assert desk.dispatcher.next_deadline_at_s == 60.0
    desk.now = 60.0
    assert rejected(desk.tell(Tick())).turn_id == 2


# conversations


def test_the_longest_idle_conversation_makes_room_for_a_new_one() -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(max_conversations=2))
    for turn in (1, 2):
        desk.now += 1
        desk.tell(of(A, turn))
        finish(desk, turn)
    commands = desk.tell(of(A, 3))
    assert commands[0] == ReleaseConversation(conversation_id=ConversationId("c1"), worker_id=D0)
    assert sent(commands) == [3]
    assert desk.dispatcher.num_conversations == 2


def test_a_new_conversation_is_refused_when_all_have_turns_under_way() -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(max_conversations=2))
    desk.tell(of(A, 1))
    desk.tell(of(A, 2))
    assert rejected(desk.tell(of(A, 3))).reason is RejectReason.TOO_MANY_CONVERSATIONS
    assert not desk.dispatcher.holds(ConversationId("c3"))
    finish(desk, 1)
    assert sent(desk.tell(of(A, 4))) == [4]


def test_a_tenants_flood_pushes_out_its_own_conversations() -> None:
    desk = Desk("p0", "d0", capacity=10**6, settings=DispatchSettings(max_conversations=10))
    for turn in range(3):
        desk.tell(of(B, turn, 10, f"old{turn}"))
        finish(desk, turn, 10)
    for turn in range(10, 100):
        desk.now += 1
        desk.tell(of(A, turn, 10))
        finish(desk, turn, 10)
    assert all(desk.dispatcher.holds(ConversationId(f"old{n}")) for n in range(3))
    assert desk.dispatcher.num_conversations == 10


def test_a_tenants_own_bound_hits_its_own_conversations_alone() -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(max_conversations_per_tenant=1))
    desk.tell(of(A, 1))
    finish(desk, 1)
    desk.tell(of(B, 2))
    finish(desk, 2)
    desk.tell(of(B, 3))
    assert desk.dispatcher.holds(ConversationId("c1"))
    assert not desk.dispatcher.holds(ConversationId("c2"))
    assert rejected(desk.tell(of(B, 4))).reason is RejectReason.TOO_MANY_CONVERSATIONS


def test_idle_kv_of_the_tenant_with_most_conversations_is_let_go_first() -> None:
    desk = Desk("p0", "d0", capacity=10_000)
    desk.tell(of(B, 1, 1000, "oldest"))
    finish(desk, 1)
    for turn in (2, 3, 4):
        desk.now += 1
        desk.tell(of(A, turn))
        finish(desk, turn)
    desk.now = 100.0
    commands = desk.tell(of(B, 9, 6000))
    released = [c.conversation_id for c in commands if isinstance(c, ReleaseConversation)]
    assert released == ["c2"]
    assert sent(commands) == [9]


def test_conversation_that_made_room_lets_a_waiting_turn_go() -> None:
    desk = Desk("p0", "d0", capacity=10_000, settings=DispatchSettings(max_conversations=2))
    desk.tell(of(A, 1, 5000))
    finish(desk, 1, 5000)
    assert desk.tell(of(A, 2, 6000)) == []
    assert sent(desk.tell(of(A, 3, 100))) == [2, 3]


def test_idle_kv_is_no_reason_to_look_again_while_turns_wait_for_a_prefiller() -> None:
    desk = a_full_prefiller()
    finish(desk, 0)
    desk.now = 100.0
    desk.tell(of(A, 1))
    desk.tell(of(A, 2))
    assert desk.dispatcher.next_deadline_at_s == 160.0, "the deadline of the turn that waits"


# with one tenant nothing changes

script = st.lists(
    st.tuples(st.sampled_from(["arrive", "arrive", "done", "end", "wait"]), st.integers(0, 5000)),
    max_size=80,
)


@given(script=script)
@settings(max_examples=150, deadline=None)
def test_one_tenant_is_treated_as_if_there_were_no_fairness(script: list[tuple[str, int]]) -> None:
    bounds = DispatchSettings(
        max_phase_one_turns=5, max_tail_turns=3, max_prefill_backlog_tokens=4000
    )
    policy = make_policy(PolicyChoice(name="conserve", params={}))
    both = [Dispatcher(policy, bounds), Dispatcher(policy, replace(bounds, is_fair=False))]
    running: list[int] = []

    def tell(event: Event, now: float) -> None:
        fair, plain = (each.handle(event, now) for each in both)
        assert fair == plain
        running.extend(sent(fair))

    for name in ("p0", "d0", "d1"):
        tell(WorkerUp(spec=a_worker(name, 9000)), 0.0)
    now = 0.0
    for number, (action, size) in enumerate(script):
        if action == "arrive":
            tell(an_arrival(number, f"c{size % 7}", size), now)
        elif action == "end":
            tell(ConversationEnded(conversation_id=ConversationId(f"c{size % 7}")), now)
        elif action == "wait":
            now += size / 100
            tell(Tick(), now)
        elif running:
            turn_id = TurnId(running.pop(size % len(running)))
            tell(FirstToken(turn_id=turn_id), now)
            tell(
                TurnDone(turn_id=turn_id, prompt_tokens=size, output_tokens=9, cached_tokens=0),
                now,
            )


def test_a_turn_that_holds_kv_passes_one_that_waits_for_room() -> None:
    desk = Desk("p0", "d0", capacity=10_000)
    desk.tell(an_arrival(1, "a", 5000))
    desk.tell(FirstToken(turn_id=TurnId(1)))
    desk.tell(TurnDone(turn_id=TurnId(1), prompt_tokens=5000, output_tokens=10, cached_tokens=0))
    assert desk.tell(an_arrival(2, "b", 6000)) == [], "no room beside the first conversation"
    sent = desk.tell(an_arrival(3, "a", 8000))  # a large append to what is there
    assert [type(command) for command in sent] == [SendTurn]
    assert sent[0].turn_id == 3  # type: ignore[union-attr]


def test_when_nothing_runs_the_last_that_waits_lets_its_kv_go() -> None:
    desk = Desk("p0", "d0", capacity=10_000)
    for turn, name in ((1, "a"), (2, "b")):
        desk.tell(an_arrival(turn, name, 4500))
        desk.tell(FirstToken(turn_id=TurnId(turn)))
        desk.tell(
            TurnDone(turn_id=TurnId(turn), prompt_tokens=4500, output_tokens=9, cached_tokens=0)
        )
    assert desk.tell(an_arrival(3, "a", 8000)) == [], "b is at rest, and spared for a while"
    commands = desk.tell(an_arrival(4, "b", 8000))
    released = [c for c in commands if isinstance(c, ReleaseConversation)]
    assert [c.conversation_id for c in released] == ["b"]
    assert [c.turn_id for c in commands if isinstance(c, SendTurn)] == [3]
