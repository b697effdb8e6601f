"""The router's one truth: the dispatcher with the conversations, lengths and deadlines around it.

Whoever holds turns and sockets tells it what happened; the commands it answers with go to
`carry_out`. With several processes there is one brain, and the others reach it over a socket.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from conserve_sglang.core.ids import ConversationId, TenantId, TurnId
from conserve_sglang.dispatch import (
    BlameWorker,
    Command,
    ConversationEnded,
    Dispatcher,
    Event,
    ReleaseConversation,
    SendTurn,
    Tick,
    TurnArrived,
    TurnDone,
)
from conserve_sglang.router.conversations import Conversation, ConversationTable
from conserve_sglang.router.estimate import Counted, LengthEstimate
from conserve_sglang.router.fleet import Fleet
from conserve_sglang.router.history import FiledAt, HistoryHash, Trail
from conserve_sglang.router.journal import Journal
from conserve_sglang.router.responses_store import ResponseStore, Stored
from conserve_sglang.router.salt import Salts
from conserve_sglang.workers.usage import Usage

SWEEP_INTERVAL_S = 1.0


class Past(Protocol):
    """What a turn says about its conversation's past; the brain sets `taken_from`."""

    taken_from: FiledAt | None

    @property
    def trail(self) -> Trail | None:
        """Its history, hashed."""
        ...


class Length(Protocol):
    """How long a turn's prompt is: counted in tokens, or else in bytes."""

    input_bytes: int
    input_tokens: int | None


class Arrival(Protocol):
    """What the brain reads of a turn; it sets `conversation` and `input_tokens`."""

    turn_id: TurnId
    tenant: TenantId
    name: bytes | None
    deadline_s: float | None
    conversation: Conversation
    input_tokens: int
    arrived_at_s: float
    command: SendTurn | None  # the last one

    @property
    def history(self) -> Past | None:
        """Of a turn without a name."""
        ...

    @property
    def payload(self) -> Length:
        """What was measured of its body."""
        ...

    def spoke_at_s(self) -> float | None:
        """Once it is answered: when the first byte came, if the answer speaks to a user; None if
        it calls tools."""
        ...


class Sharing(Protocol):
    """The other replicas, who may know a conversation better than this one.

    `problem` says why they cannot be asked; None while they can.
    """

    problem: str | None

    def arrive(self, turn: Arrival) -> None:
        """Find a turn's conversation and have it placed, now or later."""
        ...

    def dropped(self, turn: Arrival) -> bool:
        """A turn is over; True if it was not placed yet."""
        ...

    def holds(self, command: Command) -> bool:
        """Whether a command is kept for now, until all replicas agree on the pin."""
        ...

    def ended(self, key: ConversationId) -> None:
        """A conversation's client ended it."""
        ...

    def claim(self, conversation: Conversation, then: Callable[[Any], None]) -> None:
        """Have what another replica may know of a conversation, then go on."""
        ...

    def read(self, key: ConversationId, then: Callable[[Any], None]) -> None:
        """Tell what another replica said of a conversation last; None for nothing, or where
        nobody can be asked (`problem`)."""
        ...


class Brain:
    """Owns the dispatcher and the conversations. `carry_out` is set before the first event.

    `sharing` is None for a router without replicas, which never waits.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        fleet: Fleet,
        clock: Callable[[], float],
        secret: bytes,
        explained_turns: int = 0,
        responses: ResponseStore | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self.conversations = ConversationTable(dispatcher.holds, secret)
        self.journal = Journal(self.conversations.by_key, clock, explained_turns)
        self.hashing = HistoryHash(secret)
        self.salts = Salts(secret)
        self.responses = ResponseStore(0) if responses is None else responses
        self.estimate = LengthEstimate()
        self.carry_out: Callable[[Command], None] = _nobody
        self.carry_out_placed: Callable[[Command], None] = _nobody
        self.on_identified: Callable[[Arrival], None] = lambda turn: None  # one without a name
        self.on_spoken: Callable[[SendTurn, float, float], None] = lambda *seen: None
        self.sharing: Sharing | None = None
        self.shares_responses = False
        self.settle: Callable[[Callable[[], None]], None] = lambda then: then()  # see `Hub.settle`
        self._fleet = fleet
        self._clock = clock
        self._inbox: deque[Event] = deque()
        self._is_telling = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._sweep_at_s = 0.0

    def now(self) -> float:
        """The time by the clock that the dispatcher's times are of."""
        return self._clock()

    def tell(self, event: Event) -> None:
        """Tell the dispatcher what happened, and have done what it asks for.

        Doing may make more happen at once; that is told afterwards, never in between.
        """
        inbox = self._inbox
        inbox.append(event)
        if self._is_telling:
            return
        self._is_telling = True
        try:
            while inbox:
                happened, now = inbox.popleft(), self._clock()
                commands = self.dispatcher.handle(happened, now)
                self.journal.note(happened, commands, now)
                for command in commands:
                    if isinstance(command, ReleaseConversation):
                        self._release(command)
                    elif isinstance(command, BlameWorker):
                        self._fleet.failed(command.worker_id, "see the router's log")
                    elif self.sharing is not None and self.sharing.holds(command):
                        continue
                    elif command.turn_id < 0:  # of a turn that its client sends by itself
                        self.carry_out_placed(command)
                    else:
                        self.carry_out(command)
        finally:
            self._is_telling = False
        if self._timer is None or self.dispatcher.num_queued:
            self._set_timer()

    def pass_on(self, command: SendTurn) -> None:
        """Have a command carried out that was held."""
        if command.turn_id < 0:
            self.carry_out_placed(command)
        else:
            self.carry_out(command)

    # turns

    def arrive(self, turn: Arrival) -> None:
        """A turn came in."""
        if self.sharing is not None:
            self.sharing.arrive(turn)
            return
        self.identify(turn)
        self.place(turn)

    def identify(self, turn: Arrival) -> None:
        """Find a turn's conversation."""
        table = self.conversations
        if turn.name is not None:
            conversation = table.named(turn.tenant, turn.name)
        elif turn.history is not None:
            conversation, taken_from = table.continued(turn.tenant, turn.history.trail)
            turn.history.taken_from = taken_from
        else:
            conversation = table.new(turn.tenant)
        self.belongs(turn, conversation)

    def belongs(self, turn: Arrival, conversation: Conversation) -> None:
        """A turn is one of this conversation's."""
        turn.conversation = conversation
        conversation.num_open_turns += 1
        if turn.name is None:
            self.on_identified(turn)

    def place(self, turn: Arrival) -> None:
        """Have an identified turn placed."""
        conversation = turn.conversation
        num_tokens = turn.payload.input_tokens
        turn.input_tokens = num_tokens or self._estimated(conversation, turn.payload.input_bytes)
        self.tell(
            TurnArrived(
                turn.turn_id,
                conversation.key,
                turn.input_tokens,
                num_tokens is not None,
                turn.tenant,
                turn.deadline_s,
            )
        )

    def answered(self, turn: Arrival, usage: Usage | None) -> None:
        """A turn's answer is whole; `usage` is what its decoder counted."""
        self._close(turn.conversation)
        self._note_spoken(turn, is_answered=True)
        if usage is None:
            prompt_tokens, output_tokens, cached_tokens = turn.input_tokens, 0, 0
        else:
            prompt_tokens = usage.prompt_tokens
            output_tokens, cached_tokens = usage.output_tokens, usage.cached_tokens
            self._learn(turn, prompt_tokens)
        self.tell(TurnDone(turn.turn_id, prompt_tokens, output_tokens, cached_tokens))

    def unanswered(self, turn: Arrival) -> None:
        """A turn is over without a whole answer."""
        if self.sharing is not None and self.sharing.dropped(turn):
            return
        conversation, history = turn.conversation, turn.history
        self._close(conversation)
        self._note_spoken(turn, is_answered=False)
        if history is not None and history.taken_from is not None:
            # The client may come again with the same history.
            self.conversations.refile(conversation, history.taken_from)
        asyncio.get_running_loop().call_soon(self.conversations.forget_if_gone, conversation)

    def file(self, conversation: Conversation, at: FiledAt | None) -> None:
        """File a conversation under the history its client will come back with."""
        if self.conversations.by_key(conversation.key) is not None:
            self.conversations.refile(conversation, at)
            self.conversations.changed(conversation.key)

    def end_conversation(self, conversation: Conversation) -> None:
        """The client said it is over."""
        self.tell(ConversationEnded(conversation_id=conversation.key))
        self.conversations.forget_if_gone(conversation)
        if self.sharing is not None:
            self.sharing.ended(conversation.key)

    def keep_response(self, tenant: TenantId, response_id: str, stored: Stored) -> None:
        """A client may go on from this response."""
        self.responses.put(tenant, response_id, stored)

    def stop(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()

    # inside

    def _estimated(self, conversation: Conversation, num_bytes: int) -> int:
        """The length in tokens of a conversation's next prompt, of so many bytes of text."""
        last = conversation.counted
        if last is None:
            return self.estimate.tokens(num_bytes)
        return self.estimate.tokens_after(num_bytes, last)

    def _learn(self, turn: Arrival, num_tokens: int) -> None:
        num_bytes = turn.payload.input_bytes
        if num_bytes and num_tokens:
            self.estimate.learn(num_bytes, num_tokens)
            turn.conversation.counted = Counted(num_bytes, num_tokens)
        else:
            turn.conversation.counted = None  # token ids count themselves

    def _close(self, conversation: Conversation) -> None:
        conversation.num_open_turns -= 1
        self.conversations.changed(conversation.key)
        conversation.ended_at_s = now = self._clock()
        if now >= self._sweep_at_s:
            self._sweep_at_s = now + SWEEP_INTERVAL_S
            self.conversations.sweep(max(16, len(self.conversations) // 64))

    def _note_spoken(self, turn: Arrival, *, is_answered: bool) -> None:
        """Tell `on_spoken` of the first answer that speaks to a user, where turn 1 is known."""
        conversation, command = turn.conversation, turn.command
        if command is None:
            return
        conversation.see(command.turn_index, turn.arrived_at_s)
        if is_answered and conversation.began_at_s is not None:
            spoke_at_s = turn.spoke_at_s()
            if spoke_at_s is not None:
                self.on_spoken(command, conversation.began_at_s, spoke_at_s)
                conversation.began_at_s = None

    def _release(self, command: ReleaseConversation) -> None:
        self._fleet.release(command.worker_id, command.conversation_id)
        conversation = self.conversations.by_key(command.conversation_id)
        if conversation is not None:
            self.conversations.changed(conversation.key)
            self.conversations.forget_if_gone(conversation)

    def _set_timer(self) -> None:
        due = self.dispatcher.next_deadline_at_s
        if due is None:
            return
        if self._timer is not None and self._timer_at_s <= due:
            return  # it will fire early enough, and look again
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer_at_s = due
        self._timer = loop.call_later(max(0.001, due - self._clock()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.tell(Tick())


def _nobody(command: Command) -> None:
    raise RuntimeError(f"nobody carries out {command}")
