"""Two fronts and one brain, whatever happens in whatever order: one truth about pins."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.ids import TurnId
from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.core.tier import PolicyChoice, RouterSettings
from conserve_sglang.dispatch import (
    AbortTurn,
    Dispatcher,
    DispatchSettings,
    FailureCause,
    FirstToken,
    RejectTurn,
    SendTurn,
    TurnAbandoned,
    TurnFailed,
    WorkerUp,
    validate,
)
from conserve_sglang.policy import make_policy
from conserve_sglang.router.brain import Brain
from conserve_sglang.router.conversations import conversation_key
from conserve_sglang.router.executor import PROCESS_SHIFT
from conserve_sglang.router.fleet import Fleet
from conserve_sglang.router.ports import Question, Subject, Told
from conserve_sglang.router.processes import fence, talk
from conserve_sglang.router.processes.hub import FrontSeat, Hub
from conserve_sglang.router.responses_about import ResponseDesk
from conserve_sglang.router.responses_store import ResponseStore, Stored
from conserve_sglang.workers.usage import Usage
from tests.builders import a_worker
from tests.fakes.router_cluster import a_tier_map
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

SECRET = b"secret"
TENANT = DEFAULT_TENANT.tenant_id
NAMES = (b"a", b"b")


class Front:
    """A faithful front without sockets: every message crosses the wire's encoding."""

    def __init__(self, hub: Hub) -> None:
        self.sent: dict[TurnId, SendTurn] = {}
        self.begun: set[TurnId] = set()
        self.turns: set[TurnId] = set()
        self.num_turns = 0
        self.seat: FrontSeat = hub.join(self._hear)

    def say(self, message: Any) -> None:
        for each in talk.from_fronts.decode(talk.encoder.encode([message])):
            self.seat.hear(each)

    def _hear(self, message: Any) -> None:
        (heard,) = talk.from_brain.decode(talk.encoder.encode([message]))
        if not isinstance(heard, talk.Carried):
            return
        command = talk.carried(heard)
        if isinstance(command, SendTurn):
            assert command.turn_id in self.turns
            self.sent[command.turn_id] = command
        elif isinstance(command, RejectTurn):
            self.over(command.turn_id)
        else:
            assert isinstance(command, AbortTurn)
            self._abort(command.turn_id)

    def _abort(self, turn_id: TurnId) -> None:
        if turn_id in self.begun:
            self.over(turn_id)
            self.say(talk.carry(TurnAbandoned(turn_id=turn_id)))
        elif self.sent.pop(turn_id, None) is not None:
            self.say(talk.carry(TurnFailed(turn_id=turn_id, cause=FailureCause.DECODER_FAILED)))

    def over(self, turn_id: TurnId) -> None:
        self.sent.pop(turn_id, None)
        self.turns.discard(turn_id)
        self.begun.discard(turn_id)

    # what may happen

    def arrive(self, pick: int) -> None:
        self.num_turns += 1
        turn_id = TurnId((self.seat.number << PROCESS_SHIFT) + self.num_turns)
        self.turns.add(turn_id)
        name = NAMES[pick % len(NAMES)]
        self.say(talk.Arrived(turn_id, TENANT, name, None, None, 0, 100 + pick, 0.0))

    def first_token(self, pick: int) -> None:
        waiting = sorted(set(self.sent) - self.begun)
        if waiting:
            turn_id = waiting[pick % len(waiting)]
            self.begun.add(turn_id)
            self.say(talk.carry(FirstToken(turn_id=self.sent[turn_id].turn_id)))

    def done(self, pick: int) -> None:
        if self.sent:
            turn_id = sorted(self.sent)[pick % len(self.sent)]
            self.over(turn_id)
            usage = Usage(prompt_tokens=100 + pick, output_tokens=5, cached_tokens=0)
            self.say(talk.Answered(turn_id, usage if pick % 3 else None, None))

    def fail(self, pick: int) -> None:
        waiting = sorted(set(self.sent) - self.begun)
        if waiting:
            turn_id = self.sent.pop(waiting[pick % len(waiting)]).turn_id
            cause = tuple(FailureCause)[pick % len(FailureCause)]
            self.say(talk.carry(TurnFailed(turn_id=turn_id, cause=cause)))

    def abandon(self, pick: int) -> None:
        if self.turns:
            turn_id = sorted(self.turns)[pick % len(self.turns)]
            self.over(turn_id)
            self.say(talk.carry(TurnAbandoned(turn_id=turn_id)))

    def end(self, pick: int) -> None:
        key = conversation_key(SECRET, TENANT, NAMES[pick % len(NAMES)])
        self.say(talk.Ended(key))


def a_hub(now: Callable[[], float], stored_responses_bytes: int = 0) -> Hub:
    dispatcher = Dispatcher(
        make_policy(PolicyChoice(name="conserve", params={})),
        DispatchSettings(max_phase_one_turns=8, max_tail_turns=8, reserve_output_tokens=64),
    )
    modes = {"p0": "prefill", "d0": "decode", "d1": "decode"}
    never_served = {name: FakeWorker(mode, Rendezvous()) for name, mode in modes.items()}
    tier_map = a_tier_map(never_served, "conserve", RouterSettings())
    fleet = Fleet(tier_map)
    responses = ResponseStore(stored_responses_bytes)
    brain = Brain(dispatcher, fleet, now, SECRET, responses=responses)
    hub = Hub(tier_map, brain, fleet, SECRET)
    brain.carry_out = hub.carry_out
    for name in modes:
        brain.tell(WorkerUp(spec=a_worker(name)))
    return hub


ACTIONS = ("arrive",) * 4 + ("first_token",) * 2 + ("done",) * 2 + ("fail", "abandon", "end", "die")
steps = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(ACTIONS), st.integers(0, 99)), max_size=50
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_one_pin_whichever_front_the_turns_came_through(
    played: list[tuple[int, str, int]],
) -> None:
    async def play() -> None:
        hub = a_hub(lambda: 1.0)
        dispatcher = hub.brain.dispatcher
        fronts = [Front(hub), Front(hub)]
        for which, action, pick in played:
            if action == "die":
                hub.leave(fronts[which].seat)
                fronts[which] = Front(hub)
            else:
                getattr(fronts[which], action)(pick)
            validate(dispatcher)
            # At most one turn, of whichever front, brings a conversation's KV somewhere.
            bringing = Counter(
                command.conversation_id
                for front in fronts
                for turn_id, command in front.sent.items()
                if command.prefiller is not None and turn_id not in front.begun
            )
            assert set(bringing.values()) <= {1}
            assert dispatcher.num_open_turns == sum(len(front.turns) for front in fronts)
        for front in fronts:
            hub.leave(front.seat)
        validate(dispatcher)
        assert dispatcher.num_open_turns == 0
        assert {load.reserved_tokens for load in dispatcher.worker_loads()} == {0}

    asyncio.run(play())


@given(st.lists(st.booleans(), min_size=2, max_size=12))
@settings(max_examples=100, deadline=None)
def test_concurrent_first_turns_move_kv_once(through_second: list[bool]) -> None:
    async def play() -> None:
        hub = a_hub(lambda: 1.0)
        fronts = [Front(hub), Front(hub)]
        for is_second in through_second:
            fronts[is_second].arrive(0)
        (opening,) = [command for front in fronts for command in front.sent.values()]
        assert opening.prefiller is not None
        for _ in through_second:  # each waits for the first token of the one before it
            for front in fronts:
                front.first_token(0)
        sent = [command for front in fronts for command in front.sent.values()]
        assert len(sent) == min(len(through_second), 9)  # the others found the queue full
        assert {command.decoder for command in sent} == {opening.decoder}
        assert [command for command in sent if command.prefiller is not None] == [opening]

    asyncio.run(play())


async def test_follow_up_that_overtakes_its_response_waits_for_it() -> None:
    loop = asyncio.get_running_loop()
    hub = a_hub(loop.time, stored_responses_bytes=10_000)
    hub.about = ResponseDesk(hub.brain.responses, 1000)
    heard: dict[int, list[Any]] = {0: [], 1: []}
    seats = [hub.join(heard[number].append) for number in heard]
    for seat in seats:
        seat.hear(talk.Ready())

    def last(front: int, kind: type[Any]) -> Any:
        return next(each for each in reversed(heard[front]) if isinstance(each, kind))

    # The second front's client has the answer already; the first front's word of it is on its way.
    seats[1].hear(talk.Asked(1, Question(Subject.HISTORY, TENANT, b"resp_1")))
    assert not any(isinstance(each, talk.Said) for each in heard[1])
    assert not any(isinstance(each, talk.Flush) for each in heard[1])
    flush = last(0, talk.Flush)
    seats[0].hear(talk.Kept(TENANT, "resp_1", Stored(b"said", None)))
    seats[0].hear(talk.Flushed(flush.number))
    assert last(1, talk.Said) == talk.Said(1, Told(200, b"application/json", b"said"))
    # What nobody ever said is unknown when everybody was heard, or has left.
    for number, name in ((2, b"resp_2"), (3, b"resp_3")):
        seats[1].hear(talk.Asked(number, Question(Subject.HISTORY, TENANT, name)))
        if number == 2:
            seats[0].hear(talk.Flushed(last(0, talk.Flush).number))
        else:
            hub.leave(seats[0])
        told = last(1, talk.Said)
        assert (told.number, told.told.status) == (number, 400)
        assert name in told.told.body


async def test_front_that_hangs_does_not_make_a_response_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fence, "TIMEOUT_S", 0.01)
    hub = a_hub(asyncio.get_running_loop().time, stored_responses_bytes=10_000)
    hub.about = ResponseDesk(hub.brain.responses, 1000)
    heard: list[Any] = []
    seats = [hub.join(say) for say in (heard.append, lambda message: None)]
    for seat in seats:
        seat.hear(talk.Ready())
    seats[0].hear(talk.Asked(1, Question(Subject.FORGET, TENANT, b"resp_1")))
    await asyncio.sleep(0.1)
    assert (heard[-1].number, heard[-1].told.status) == (1, 503)


async def test_where_replicas_share_responses_all_fronts_are_heard_when_one_asks() -> None:
    hub = a_hub(asyncio.get_running_loop().time, stored_responses_bytes=10_000)
    hub.about = ResponseDesk(hub.brain.responses, 1000)
    hub.brain.shares_responses = True
    heard: dict[int, list[Any]] = {0: [], 1: []}
    seats = [hub.join(heard[number].append) for number in heard]
    for seat in seats:
        seat.hear(talk.Ready())
    seats[1].hear(talk.Asked(1, Question(Subject.HISTORY, TENANT, b"resp_1")))
    assert isinstance(heard[1][-1], talk.Said)  # who answers has asked the replicas
    assert not any(isinstance(each, talk.Flush) for each in heard[0])
    settled: list[bool] = []
    hub.brain.settle(lambda: settled.append(True))
    for number, seat in enumerate(seats):
        assert not settled
        seat.hear(talk.Flushed(heard[number][-1].number))
    assert settled == [True]
