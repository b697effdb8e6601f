"""What a front sees of the brain, its fleet and its knowledge: a link's other end."""

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from conserve_sglang.core.health import HealthSettings
from conserve_sglang.core.ids import ConversationId, TenantId, WorkerId
from conserve_sglang.core.tier import WorkerPlan
from conserve_sglang.dispatch import Event
from conserve_sglang.router.conversations import Conversation, conversation_key
from conserve_sglang.router.fleet import Worker, WorkerState
from conserve_sglang.router.history import FiledAt, HistoryHash, PromptTrail
from conserve_sglang.router.identity import History
from conserve_sglang.router.ports import Question, Told, refusal
from conserve_sglang.router.problem import SILENT
from conserve_sglang.router.processes import talk
from conserve_sglang.router.responses_about import ABOUT_RESPONSES, LONG_ANSWERS
from conserve_sglang.router.responses_store import Stored
from conserve_sglang.router.salt import Salts
from conserve_sglang.router.turn import Turn
from conserve_sglang.workers.access import WorkerAccess
from conserve_sglang.workers.breaker import CircuitBreaker
from conserve_sglang.workers.usage import Usage

MAX_REMEMBERED = 16_384
MAX_HISTORIES = 8  # or responses, on their way from the brain at a time
ANSWER_TIMEOUT_S = 5.0
_NO_ANSWER = refusal(SILENT)
Say = Callable[[Any], None]


class RemoteBrain:
    """Tells the brain what becomes of turns. Conversations are known here by name and key only."""

    def __init__(self, say: Say, secret: bytes) -> None:
        self.hashing = HistoryHash(secret)
        self.salts = Salts(secret)
        self._say = say
        self._secret = secret
        self._seen: OrderedDict[tuple[TenantId, bytes], Conversation] = OrderedDict()

    def arrive(self, turn: Turn) -> None:
        """A turn came in; where it has no name, the brain says which conversation it is of."""
        if turn.name is not None:
            turn.conversation = self._conversation(turn.tenant, turn.name)
        digests, prompt = _past(turn.history)
        payload = turn.payload
        self._say(
            talk.Arrived(
                turn.turn_id,
                turn.tenant,
                turn.name,
                digests,
                prompt,
                payload.input_bytes,
                payload.input_tokens,
                turn.arrived_at_s,
                turn.deadline_s,
            )
        )

    def tell(self, event: Event) -> None:
        """Something happened to a turn."""
        self._say(talk.carry(event))

    def answered(self, turn: Turn, usage: Usage | None) -> None:
        """A turn's answer is whole."""
        self._say(talk.Answered(turn.turn_id, usage, turn.spoke_at_s()))

    def unanswered(self, turn: Turn) -> None:
        """The brain hears of it as `TurnAbandoned`, or has rejected the turn itself."""

    def file(self, conversation: Conversation, at: FiledAt | None) -> None:
        """The history a conversation's client will come back with."""
        self._say(talk.Filed(conversation.key, at))

    def end_conversation(self, conversation: Conversation) -> None:
        """The client said it is over."""
        self._say(talk.Ended(conversation.key))

    def keep_response(self, tenant: TenantId, response_id: str, stored: Stored) -> None:
        """A client may go on from this response."""
        self._say(talk.Kept(tenant, response_id, stored))

    def identified(self, identified: talk.Identified) -> Conversation:
        """The conversation that the brain says a turn is of."""
        tenant, key = TenantId(identified.tenant), ConversationId(identified.key)
        return self._conversation(tenant, identified.name, key)

    def _conversation(
        self, tenant: TenantId, name: bytes, key: ConversationId | None = None
    ) -> Conversation:
        """A conversation by its name; those not seen for the longest time are forgotten."""
        seen = self._seen
        conversation = seen.get((tenant, name))
        if conversation is None:
            key = key or conversation_key(self._secret, tenant, name)
            conversation = seen[tenant, name] = Conversation(key, tenant, name)
            if len(seen) > MAX_REMEMBERED:
                seen.popitem(last=False)
        else:
            seen.move_to_end((tenant, name))
        return conversation


def _past(history: History | None) -> tuple[list[bytes] | None, tuple[bytes, bytes] | None]:
    trail = None if history is None else history.trail
    if history is None or trail is None:
        return None, None
    if isinstance(trail, PromptTrail):
        return None, (history.kind, trail.prompt)
    return trail.digests, None


class RemoteFleet:
    """The workers as the brain says they stand, with connections of this process's own."""

    def __init__(self, say: Say, health: HealthSettings, access: WorkerAccess) -> None:
        self.may_decode = False
        self._health = health
        self._say = say
        self._access = access
        self._workers: dict[WorkerId, Worker] = {}

    def workers(self) -> tuple[Worker, ...]:
        """All workers that the brain has told of, in that order."""
        return tuple(self._workers.values())

    def worker(self, worker_id: WorkerId) -> Worker:
        """A worker by its name."""
        return self._workers[worker_id]

    def is_up(self, worker_id: WorkerId) -> bool:
        """Whether a worker is there and was not lost."""
        worker = self._workers.get(worker_id)
        return worker is not None and worker.is_up

    def is_removed(self, worker_id: WorkerId) -> bool:
        """Whether a worker leaves on an operator's word, or is known no more."""
        worker = self._workers.get(worker_id)
        return worker is None or worker.state is WorkerState.REMOVED

    def stands(self, standing: talk.Standing) -> None:
        """The brain says how a worker stands."""
        plan = standing.plan
        worker = self._workers.get(plan.worker_id)
        if worker is not None and worker.plan != plan:
            worker.close()
            worker = None
        if worker is None:
            worker = self._workers[plan.worker_id] = self._new(plan)
        worker.kv_bytes_per_token = standing.kv_bytes_per_token
        worker.can_continue = standing.can_continue
        worker.serves_local_turns = standing.serves_local_turns
        if not worker.is_up and standing.state is not WorkerState.UP:
            worker.close()
        worker.state = standing.state
        self._count()

    def gone(self, gone: talk.Gone) -> None:
        """The brain says that a worker was removed."""
        worker = self._workers.pop(WorkerId(gone.worker_id), None)
        if worker is not None:
            worker.close()
        self._count()

    def look(self) -> talk.Looked:
        """What was seen of the workers since the last look."""
        looks = {name: worker.pool.look() for name, worker in self._workers.items()}
        return talk.Looked({name: seen for name, seen in looks.items() if any(seen)})

    def close(self) -> None:
        """Close every connection."""
        for worker in self._workers.values():
            worker.close()

    def _new(self, plan: WorkerPlan) -> Worker:
        # The brain's breaker decides; this one is never asked.
        breaker = CircuitBreaker(self._health.breaker, random.Random())
        return Worker(plan, self._health, breaker, self._refused, self._access)

    def _count(self) -> None:
        decoders = [worker for worker in self._workers.values() if worker.can_decode]
        self.may_decode = any(worker.state is not WorkerState.REFUSED for worker in decoders)

    def _refused(self, worker: Worker) -> None:
        self._say(talk.ConnectionRefused(worker.worker_id))


class RemoteAbout:
    """Passes questions on to the brain. Of histories and responses, which may be long, a few are
    asked for at a time, and what concerns responses has to be answered in time."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._num_asked = 0
        self._waiting: dict[int, Callable[[Told], None]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._histories: set[int] = set()  # asked for
        self._later: deque[talk.Asked] = deque()

    def ask(self, question: Question, hear: Callable[[Told], None]) -> None:
        """See `About`."""
        self._num_asked = number = self._num_asked + 1
        self._waiting[number] = hear
        asked = talk.Asked(number, question)
        if question.subject in ABOUT_RESPONSES:
            later = asyncio.get_running_loop().call_later
            self._timers[number] = later(ANSWER_TIMEOUT_S, self._late, number)
        if question.subject not in LONG_ANSWERS:
            self._say(asked)
        else:
            self._later.append(asked)
            self._ask_for_histories()

    def said(self, said: talk.Said) -> None:
        """The brain answers."""
        self._histories.discard(said.number)
        self._ask_for_histories()
        self._answer(said.number, said.told)

    def brain_gone(self) -> None:
        """Nobody will answer any more."""
        for number in tuple(self._waiting):
            self._answer(number, _NO_ANSWER)

    def _ask_for_histories(self) -> None:
        while self._later and len(self._histories) < MAX_HISTORIES:
            asked = self._later.popleft()
            if asked.number in self._waiting:
                self._histories.add(asked.number)
                self._say(asked)

    def _late(self, number: int) -> None:
        self._answer(number, _NO_ANSWER)

    def _answer(self, number: int, told: Told) -> None:
        timer = self._timers.pop(number, None)
        if timer is not None:
            timer.cancel()
        hear = self._waiting.pop(number, None)
        if hear is not None:  # else it was answered for the brain, which was late
            hear(told)
