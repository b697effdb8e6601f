"""The order of waiting turns: fair between tenants, arrival order within one."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.ids import ConversationId, TenantId, TurnId
from conserve_sglang.dispatch import (
    ConversationEnded,
    DispatchSettings,
    FirstToken,
    SendTurn,
    TenantsWeighed,
    TurnAbandoned,
    TurnDone,
    WorkerUp,
)
from conserve_sglang.dispatch.fair_order import FairOrder
from conserve_sglang.dispatch.state import Conversation, TenantAccount, Turn
from tests.builders import Desk, a_worker, an_arrival

A, B, C = TenantId("a"), TenantId("b"), TenantId("c")
ONE_AT_A_TIME = DispatchSettings(
    reserve_output_tokens=100, max_prefill_backlog_tokens=1, max_phase_one_turns=10_000
)


class Queue:
    """A prefiller that takes one turn at a time, and conversations of one turn each."""

    def __init__(
        self, settings: DispatchSettings = ONE_AT_A_TIME, weights: dict[str, float] | None = None
    ) -> None:
        self.desk = Desk("p0", capacity=1_000_000, settings=settings)
        self.desk.tell(WorkerUp(spec=a_worker("d0", 1_000_000)))
        self.desk.tell(TenantsWeighed(weights={TenantId(t): w for t, w in (weights or {}).items()}))
        self.tenant_of: dict[TurnId, TenantId] = {}
        self.tokens_of: dict[TurnId, int] = {}
        self.running: TurnId | None = None
        self.served: list[TurnId] = []

    def ask(self, tenant: TenantId, tokens: int = 1000) -> TurnId:
        turn = an_arrival(len(self.tenant_of), f"c{len(self.tenant_of)}", tokens)
        self.tenant_of[turn.turn_id], self.tokens_of[turn.turn_id] = tenant, tokens
        self.take_note(self.desk.tell(replace(turn, tenant=tenant)))
        return turn.turn_id

    def serve(self) -> TenantId | None:
        """The running turn is over; whose it was."""
        turn_id = self.running
        if turn_id is None:
            return None
        self.running = None
        tokens = self.tokens_of[turn_id]
        for event in (
            FirstToken(turn_id=turn_id),
            TurnDone(turn_id=turn_id, prompt_tokens=tokens, output_tokens=1, cached_tokens=0),
            ConversationEnded(conversation_id=ConversationId(f"c{turn_id}")),
        ):
            self.take_note(self.desk.tell(event))
        return self.tenant_of[turn_id]

    def take_note(self, commands: object) -> None:
        assert isinstance(commands, list)
        for command in commands:
            if isinstance(command, SendTurn):
                assert self.running is None, "two at a time"
                self.running = command.turn_id
                self.served.append(command.turn_id)

    def num_waiting(self, tenant: TenantId) -> int:
        unserved = set(self.tenant_of) - set(self.served)
        return sum(self.tenant_of[turn_id] == tenant for turn_id in unserved)


def test_one_tenant_is_served_in_arrival_order() -> None:
    queue = Queue()
    turns = [queue.ask(A, tokens) for tokens in (500, 9000, 20, 700)]
    while queue.serve():
        pass
    assert queue.served == turns


def test_a_tenant_with_one_turn_does_not_wait_behind_anothers_burst() -> None:
    queue = Queue()
    for _ in range(50):
        queue.ask(A)
    lone = queue.ask(B)
    queue.serve()
    queue.serve()
    assert queue.served.index(lone) <= 2


def test_without_fairness_it_does() -> None:
    queue = Queue(replace(ONE_AT_A_TIME, is_fair=False))
    for _ in range(50):
        queue.ask(A)
    queue.ask(B)
    while queue.serve():
        pass
    assert queue.tenant_of[queue.served[-1]] == B


def test_weights_set_the_shares() -> None:
    queue = Queue(weights={"a": 3.0, "b": 1.0})
    for _ in range(100):
        queue.ask(A)
        queue.ask(B)
    served = Counter(queue.serve() for _ in range(80))
    assert served[A] == pytest.approx(60, abs=2)


def test_short_turns_and_long_ones_share_by_tokens() -> None:
    queue = Queue()
    for _ in range(200):
        queue.ask(A, 3900)
        queue.ask(B, 900)
    served = Counter(queue.serve() for _ in range(100))
    assert served[B] == pytest.approx(80, abs=2), "4,000 tokens for each of A, 1,000 of B"


def test_nobody_saves_up_a_claim_while_it_asks_for_nothing() -> None:
    queue = Queue()
    for _ in range(100):
        queue.ask(A)
    for _ in range(50):
        queue.serve()
    for _ in range(50):
        queue.ask(B)
    served = Counter(queue.serve() for _ in range(20))
    assert served[A] == pytest.approx(10, abs=1)


def test_weights_can_change_while_turns_wait() -> None:
    queue = Queue()
    for _ in range(100):
        queue.ask(A)
        queue.ask(B)
    queue.desk.tell(TenantsWeighed(weights={B: 4.0}))
    served = Counter(queue.serve() for _ in range(50))
    assert served[B] == pytest.approx(40, abs=2)
    with pytest.raises(ValueError, match="above 0"):
        TenantsWeighed(weights={B: 0.0})


def test_a_turn_that_leaves_the_line_costs_its_tenant_nothing() -> None:
    queue = Queue()
    turns = [queue.ask(A) for _ in range(10)]
    lone = queue.ask(B)
    for turn_id in turns[1:6]:
        queue.desk.tell(TurnAbandoned(turn_id=turn_id))
    while queue.serve():
        pass
    assert queue.served == [turns[0], turns[6], lone, *turns[7:]]


asked = st.lists(
    st.tuples(st.sampled_from([A, B, C]), st.integers(1, 5000)), min_size=1, max_size=60
)
weights = st.fixed_dictionaries({t: st.sampled_from([0.5, 1.0, 2.0, 5.0]) for t in "abc"})


@given(asked=asked, weights=weights, first_served=st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_backlogged_tenants_are_served_by_weight_within_a_bounded_lag(
    asked: list[tuple[TenantId, int]], weights: dict[str, float], first_served: int
) -> None:
    """The bound of start-time fair queueing, for every stretch in which both tenants wait."""
    queue = Queue(weights=weights)
    for number, (tenant, tokens) in enumerate(asked):
        queue.ask(tenant, tokens)
        if number % 3 == 0 and number < first_served:
            queue.serve()
    dues: list[dict[TenantId, float]] = []
    work = dict.fromkeys((A, B, C), 0.0)
    while queue.running is not None:
        turn_id = queue.running
        waits = {t for t in work if queue.num_waiting(t) or queue.tenant_of[turn_id] == t}
        dues.append({t: work[t] for t in waits})
        tenant = queue.tenant_of[turn_id]
        work[tenant] += (queue.tokens_of[turn_id] + 100) / weights[tenant]
        queue.serve()
    largest = {
        t: max((tokens + 100 for other, tokens in asked if other == t), default=0) / weights[t]
        for t in work
    }
    for one, other in ((A, B), (A, C), (B, C)):
        lags = [due[one] - due[other] for due in dues if one in due and other in due]
        if lags:
            assert max(lags) - min(lags) <= 2 * (largest[one] + largest[other]) + 1e-6


@given(asked=asked)
@settings(max_examples=100, deadline=None)
def test_the_prefiller_never_idles_while_somebody_waits(
    asked: list[tuple[TenantId, int]],
) -> None:
    queue = Queue()
    for tenant, tokens in asked:
        queue.ask(tenant, tokens)
        assert queue.running is not None
    for _ in asked:
        assert queue.serve() is not None
    assert sorted(queue.served) == sorted(queue.tenant_of), "and nobody is left"


def test_a_turn_that_needs_much_room_is_passed_by_other_tenants_but_not_for_ever() -> None:
    desk = Desk("p0", "d0", capacity=10_000, settings=DispatchSettings(reserve_output_tokens=0))
    desk.tell(an_arrival(1, "kept", 1000))
    desk.tell(FirstToken(turn_id=TurnId(1)))
    assert desk.tell(replace(an_arrival(2, "large", 9500), tenant=A)) == []
    assert desk.tell(replace(an_arrival(3, "own", 100), tenant=A)) == [], "not by its own tenant"
    num_passed = 0
    for number in range(4, 40):
        commands = desk.tell(replace(an_arrival(number, f"s{number}", 1000), tenant=B))
        if not commands:
            break
        num_passed += 1
        turn_id = TurnId(number)
        desk.tell(FirstToken(turn_id=turn_id))
        desk.tell(TurnDone(turn_id=turn_id, prompt_tokens=1, output_tokens=1, cached_tokens=0))
        desk.tell(ConversationEnded(conversation_id=ConversationId(f"s{number}")))
    assert num_passed == 11, "a pool's worth of tokens"
    over = TurnDone(turn_id=TurnId(1), prompt_tokens=1, output_tokens=1, cached_tokens=0)
    commands = desk.tell(over)
    assert [c.turn_id for c in commands if isinstance(c, SendTurn)] == [2, 3]


def test_the_line_stays_small_while_clients_come_and_go() -> None:
    queue = Queue()
    queue.ask(A)
    queue.ask(A)
    for _ in range(2000):
        queue.desk.tell(TurnAbandoned(turn_id=queue.ask(A)))
        queue.desk.tell(TurnAbandoned(turn_id=queue.ask(B)))
    order = queue.desk.dispatcher._line.order
    assert len(order._heap) < 200
    assert all(len(account.waiting) < 200 for _, _, account in order._heap)


def test_a_turn_that_was_sent_from_the_middle_and_came_back_stands_in_line_once() -> None:
    order, account = FairOrder(is_fair=True), TenantAccount(A, 1.0)
    first, second, third = (
        Turn(TurnId(n), Conversation(ConversationId(f"c{n}"), account, 0.0), n, 1, 9, True, 9, n, 0)
        for n in range(3)
    )
    for turn in (first, second, third):
        order.add(turn)
    order.take(second)
    second.attempts += 1
    order.add(second)
    order.take(first)
    assert order.first() is second
    order.put_last(second)
    assert order.first() is third
    order.take(third)
    assert order.first() is second
