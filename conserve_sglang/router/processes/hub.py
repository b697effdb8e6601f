"""The brain's side of several processes: hears every front, and sends each its turns' commands."""

import asyncio
import logging
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

from conserve_sglang.core.ids import TenantId, TurnId, WorkerId
from conserve_sglang.core.tier import TierMap
from conserve_sglang.dispatch import (
    BlameWorker,
    Command,
    Event,
    RejectTurn,
    ReleaseConversation,
    SendTurn,
    TurnAbandoned,
    WorkerLost,
    WorkerUp,
)
from conserve_sglang.router.brain import Arrival, Brain
from conserve_sglang.router.conversations import UNIDENTIFIED
from conserve_sglang.router.executor import PROCESS_SHIFT
from conserve_sglang.router.fleet import Fleet, Worker
from conserve_sglang.router.history import Digests, FiledAt, Trail
from conserve_sglang.router.ports import About, Question, Told, refusal
from conserve_sglang.router.problem import SILENT
from conserve_sglang.router.processes import talk
from conserve_sglang.router.processes.fence import Fences
from conserve_sglang.router.responses_about import ABOUT_RESPONSES
from conserve_sglang.telemetry.metrics import RouterMetrics

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.25


class _Past:
    """The history of a turn that a front holds."""

    __slots__ = ("taken_from", "trail")

    def __init__(self, trail: Trail | None) -> None:
        self.trail = trail
        self.taken_from: FiledAt | None = None


class _Turn:
    """A turn that a front holds, as the brain sees it."""

    __slots__ = (
        "arrived_at_s",
        "command",
        "conversation",
        "deadline_s",
        "history",
        "input_tokens",
        "name",
        "payload",
        "spoke_to_user_at_s",
        "tenant",
        "turn_id",
    )

    def __init__(self, arrived: talk.Arrived, history: _Past | None) -> None:
        self.turn_id = TurnId(arrived.turn_id)
        self.tenant = TenantId(arrived.tenant)
        self.name = arrived.name
        self.deadline_s = arrived.deadline_s
        self.arrived_at_s = arrived.arrived_at_s
        self.history = history
        self.payload = arrived
        self.conversation = UNIDENTIFIED
        self.input_tokens = 0
        self.command: SendTurn | None = None
        self.spoke_to_user_at_s: float | None = None

    def spoke_at_s(self) -> float | None:
        """See `Arrival`."""
        return self.spoke_to_user_at_s


class FrontSeat:
    """One front: where to talk to it, its open turns, and what it has counted."""

    def __init__(self, hub: "Hub", number: int, say: Callable[[Any], None]) -> None:
        self.number = number
        self.say = say
        self.metrics: dict[str, Any] | None = None
        self.awaited: frozenset[str] = frozenset()
        self.heard: set[str] = set()
        self.open: dict[TurnId, _Turn] = {}
        self.is_ready = asyncio.Event()
        self._hub = hub
        self._takes: dict[type[Any], Callable[[Any], None]] = {
            talk.Arrived: self._arrived,
            talk.Answered: self._answered,
            talk.Carried: self._happened,
            talk.Filed: hub.filed,
            talk.Ended: hub.ended,
            talk.Asked: self._asked,
            talk.Kept: hub.kept,
            talk.Flushed: self._flushed,
            talk.ConnectionRefused: hub.connection_refused,
            talk.Looked: self._looked,
            talk.Counted: self._counted,
            talk.Ready: self._ready,
        }

    def hear(self, message: Any) -> None:
        """Take a message of this front's."""
        self._takes[type(message)](message)

    def leave(self) -> None:
        """The front is gone, and its clients with it: nobody waits for its turns."""
        for turn_id in tuple(self.open):
            self._abandon(TurnAbandoned(turn_id=turn_id))

    def carry_out(self, command: Command) -> None:
        """Pass a command on."""
        if isinstance(command, RejectTurn):
            turn = self.open.pop(command.turn_id, None)
            if turn is not None:
                self._hub.brain.unanswered(turn)
        elif isinstance(command, SendTurn):
            turn = self.open.get(command.turn_id)
            if turn is not None:
                turn.command = command
        self.say(talk.carry(command))

    def _arrived(self, arrived: talk.Arrived) -> None:
        hub = self._hub
        turn = _Turn(arrived, hub.past(arrived))
        self.open[turn.turn_id] = turn
        hub.brain.arrive(turn)

    def _answered(self, answered: talk.Answered) -> None:
        turn = self.open.pop(TurnId(answered.turn_id), None)
        if turn is not None:
            turn.spoke_to_user_at_s = answered.spoke_at_s
            self._hub.brain.answered(turn, answered.usage)

    def _happened(self, message: talk.Carried) -> None:
        event = talk.carried(message)
        if isinstance(event, TurnAbandoned):
            self._abandon(event)
        else:
            self._hub.brain.tell(event)

    def _abandon(self, event: TurnAbandoned) -> None:
        turn = self.open.pop(event.turn_id, None)
        if turn is not None:
            self._hub.brain.unanswered(turn)
        self._hub.brain.tell(event)

    def _asked(self, asked: talk.Asked) -> None:
        def hear(told: Told) -> None:
            self.say(talk.Said(asked.number, told))

        self._hub.ask(self, asked.question, hear)

    def _flushed(self, flushed: talk.Flushed) -> None:
        self._hub.fences.heard(self.number, flushed.number)

    def _looked(self, looked: talk.Looked) -> None:
        self.awaited = frozenset(name for name, (awaited, _) in looked.workers.items() if awaited)
        self.heard.update(name for name, (_, heard) in looked.workers.items() if heard)

    def _counted(self, counted: talk.Counted) -> None:
        self.metrics = counted.metrics

    def _ready(self, ready: talk.Ready) -> None:
        self.is_ready.set()


class Hub:
    """Between the brain and its fronts. `about` is set before the first front comes."""

    about: About

    def __init__(self, tier_map: TierMap, brain: Brain, fleet: Fleet, secret: bytes) -> None:
        self.brain = brain
        brain.on_identified = self._identified
        brain.settle = self.settle
        self.port = 0
        self.fences = Fences()
        self._fleet = fleet
        self._tier_map = pickle.dumps(tier_map)
        self._secret = secret
        self._seats: dict[int, FrontSeat] = {}
        self._num_seats = 0
        self._left = RouterMetrics()
        self._announced: dict[WorkerId, talk.Standing] = {}

    def seats(self) -> tuple[FrontSeat, ...]:
        """The fronts there are."""
        return tuple(self._seats.values())

    def join(self, say: Callable[[Any], None]) -> FrontSeat:
        """A front came: tell it what it must know."""
        self._num_seats += 1
        seat = self._seats[self._num_seats] = FrontSeat(self, self._num_seats, say)
        say(talk.Welcome(seat.number, self.port, self._secret, self._tier_map))
        for worker in self._fleet.workers():
            say(_standing(worker))
        return seat

    def leave(self, seat: FrontSeat) -> None:
        """A front is gone."""
        if self._seats.pop(seat.number, None) is None:
            return
        if seat.metrics is not None:
            self._left.merge(seat.metrics)
            self._left.certificate_expires_at_s = None  # it shows none any more
        seat.leave()
        self.fences.gone(seat.number)

    def tell_all(self, message: Any) -> None:
        """Say something to every front."""
        for seat in self._seats.values():
            seat.say(message)

    def metrics(self) -> RouterMetrics:
        """What all fronts have counted, those that are gone too."""
        total = RouterMetrics()
        total.merge(self._left.to_plain())
        for seat in self._seats.values():
            if seat.metrics is not None:
                total.merge(seat.metrics)
        return total

    async def watch(self) -> None:
        """Keep the fronts' view of the fleet and the fleet's of silent workers what they are."""
        while True:
            workers = {worker.worker_id: worker for worker in self._fleet.workers()}
            for worker_id in self._announced.keys() - workers.keys():
                del self._announced[worker_id]
                self.tell_all(talk.Gone(worker_id))
            for worker in workers.values():
                worker.look = partial(self._look, worker.worker_id)
                if self._announced.get(worker.worker_id) != _standing(worker):
                    self._announce(worker.worker_id)
            await asyncio.sleep(WATCH_INTERVAL_S)

    def _look(self, worker_id: WorkerId) -> tuple[bool, bool]:
        """What all fronts together see of a worker; see `ConnectionPool.look`."""
        is_awaited = was_heard = False
        for seat in self._seats.values():
            is_awaited = is_awaited or worker_id in seat.awaited
            was_heard = was_heard or worker_id in seat.heard
            seat.heard.discard(worker_id)
        return is_awaited, was_heard

    # for the brain and its fleet

    def carry_out(self, command: Command) -> None:
        """Send a command to the front that holds the turn."""
        if isinstance(command, ReleaseConversation | BlameWorker):
            return
        seat = self._seats.get(command.turn_id >> PROCESS_SHIFT)
        if seat is not None:
            seat.carry_out(command)

    def _identified(self, turn: Arrival) -> None:
        seat, conversation = self._seats.get(turn.turn_id >> PROCESS_SHIFT), turn.conversation
        if seat is not None:
            seat.say(
                talk.Identified(turn.turn_id, turn.tenant, conversation.key, conversation.name)
            )

    def fleet_event(self, event: Event) -> None:
        """Let the fronts know of workers before the commands that follow from it reach them."""
        worker_id = event.worker_id if isinstance(event, WorkerLost) else None
        if isinstance(event, WorkerUp):
            worker_id = event.spec.worker_id
        if worker_id is None:
            self.brain.tell(event)
            return
        self._announce(worker_id)
        self.brain.tell(event)
        if isinstance(event, WorkerLost):
            self._announce(worker_id)

    def _announce(self, worker_id: WorkerId) -> None:
        standing = self._announced[worker_id] = _standing(self._fleet.worker(worker_id))
        self.tell_all(standing)

    # for the fronts

    def ask(self, asker: FrontSeat, question: Question, hear: Callable[[Told], None]) -> None:
        """Answer a front's client. What another front may just have told of is not called unknown
        before that front has been heard."""
        again = partial(self.about.ask, question, hear)

        def hear_first(told: Told) -> None:
            if told.status == 200:
                hear(told)
            else:
                seats = (seat for seat in self._seats.values() if seat.is_ready.is_set())
                others = [seat for seat in seats if seat is not asker]
                self.fences.wait_for(others, again, partial(hear, refusal(SILENT)))

        if question.subject in ABOUT_RESPONSES and not self.brain.shares_responses:
            self.about.ask(question, hear_first)
        else:  # where replicas share responses, this router's fronts are heard with the others'
            again()

    def settle(self, then: Callable[[], None]) -> None:
        """Go on when all is heard that fronts have said by now, or they are too late."""
        seats = [seat for seat in self._seats.values() if seat.is_ready.is_set()]
        self.fences.wait_for(seats, then, then)

    def kept(self, kept: talk.Kept) -> None:
        """A front's client may go on from a response."""
        self.brain.keep_response(TenantId(kept.tenant), kept.response_id, kept.stored)

    def past(self, arrived: talk.Arrived) -> _Past | None:
        """The history a turn brings along."""
        if arrived.digests is not None:
            return _Past(Digests(arrived.digests))
        if arrived.prompt is not None:
            kind, prompt = arrived.prompt
            return _Past(self.brain.hashing.prompt(TenantId(arrived.tenant), kind, prompt))
        return None

    def filed(self, filed: talk.Filed) -> None:
        """A front knows how an answered conversation's history goes on."""
        conversation = self.brain.conversations.by_key(filed.key)
        if conversation is not None:
            self.brain.file(conversation, filed.at)

    def ended(self, ended: talk.Ended) -> None:
        """A front's client ended a conversation."""
        conversation = self.brain.conversations.by_key(ended.key)
        if conversation is not None:
            self.brain.end_conversation(conversation)

    def connection_refused(self, refused: talk.ConnectionRefused) -> None:
        """A worker takes no connections of a front's."""
        self._fleet.connection_refused(WorkerId(refused.worker_id))


def _standing(worker: Worker) -> talk.Standing:
    can = worker.can_continue, worker.serves_local_turns
    return talk.Standing(worker.plan, worker.state, worker.kv_bytes_per_token, *can)
