"""Carries out the dispatcher's commands over the workers, and tells it what happened."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from conserve_sglang.core.ids import TurnId
from conserve_sglang.dispatch import (
    AbortTurn,
    Command,
    ConversationEnded,
    Dispatcher,
    Event,
    FailureCause,
    FirstToken,
    RejectTurn,
    ReleaseConversation,
    SendTurn,
    Tick,
    TurnAbandoned,
    TurnArrived,
    TurnDone,
    TurnFailed,
)
from conserve_sglang.router.conversations import Conversation, ConversationTable
from conserve_sglang.router.estimate import Counted, LengthEstimate
from conserve_sglang.router.fleet import Fleet
from conserve_sglang.router.legs import DecodeLeg, PrefillLeg
from conserve_sglang.router.problem import BROKEN_OFF, ENDED
from conserve_sglang.router.turn import Turn
from conserve_sglang.router.wire import local_mark, request
from conserve_sglang.telemetry.prometheus import Outcome, RouterMetrics
from conserve_sglang.workers.bootstrap import rooms
from conserve_sglang.workers.sse import Usage

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 1.0


class Executor:
    """Between the dispatcher, which knows no I/O, and the workers."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        fleet: Fleet,
        metrics: RouterMetrics,
        clock: Callable[[], float],
        secret: bytes,
    ) -> None:
        self.dispatcher = dispatcher
        self.metrics = metrics
        self.conversations = ConversationTable(dispatcher.holds, secret)
        self.estimate = LengthEstimate()
        self._fleet = fleet
        self._clock = clock
        self._turns: dict[TurnId, Turn] = {}
        self._num_turns = 0
        self._inbox: deque[Event] = deque()
        self._is_telling = False
        self._rooms = rooms()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._sweep_at_s = 0.0

    @property
    def num_open_turns(self) -> int:
        """Turns that have arrived and are not over."""
        return len(self._turns)

    def next_turn_id(self) -> TurnId:
        """A number no turn had before."""
        self._num_turns += 1
        return TurnId(self._num_turns)

    def estimated(self, conversation: Conversation, num_bytes: int) -> int:
        """The length in tokens of a conversation's next prompt, of so many bytes of text."""
        last = conversation.counted
        if last is None:
            return self.estimate.tokens(num_bytes)
        return self.estimate.tokens_after(num_bytes, last)

    def arrive(self, turn: Turn) -> None:
        """Take in a turn."""
        turn.arrived_at_s = self._clock()
        turn.conversation.num_open_turns += 1
        self._turns[turn.turn_id] = turn
        self.tell(
            TurnArrived(
                turn_id=turn.turn_id,
                conversation_id=turn.conversation.key,
                input_tokens=turn.input_tokens,
                is_exact=turn.payload.input_tokens is not None,
            )
        )
        self._mind_queue()

    def end_conversation(self, conversation: Conversation) -> None:
        """The client said it is over."""
        self.tell(ConversationEnded(conversation_id=conversation.key))
        self.conversations.forget_if_gone(conversation)

    def stop(self) -> None:
        """Let go of the timer and of every turn."""
        if self._timer is not None:
            self._timer.cancel()
        for turn in tuple(self._turns.values()):
            turn.stop_legs()

    def tell(self, event: Event) -> None:
        """Tell the dispatcher what happened, and do what it asks for.

        Doing may make more happen at once; that is told afterwards, never in between.
        """
        inbox = self._inbox
        inbox.append(event)
        if self._is_telling:
            return
        self._is_telling = True
        try:
            while inbox:
                for command in self.dispatcher.handle(inbox.popleft(), self._clock()):
                    try:
                        self._carry_out(command)
                    except Exception:
                        self._give_up(command)
        finally:
            self._is_telling = False
        if self._timer is None:
            self._set_timer()

    # commands

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, SendTurn):
            self._send(command)
        elif isinstance(command, RejectTurn):
            turn = self._close(command.turn_id, Outcome.REJECTED)
            if turn is not None:
                self.metrics.rejections[command.reason] += 1
                turn.reject(command.reason)
        elif isinstance(command, AbortTurn):
            self._abort(command)
        else:
            self._release(command)

    def _give_up(self, command: Command) -> None:
        """One command failed through a fault of ours: the other turns' go on."""
        logger.exception("the router could not carry out %s", command)
        if isinstance(command, ReleaseConversation):
            return
        turn = self._turns.get(command.turn_id)
        if turn is None:
            return
        try:
            turn.give_up()
        except Exception:
            logger.exception("turn %d could not be given up in order", turn.turn_id)

    def _send(self, command: SendTurn) -> None:
        turn = self._turns.get(command.turn_id)
        if turn is None:
            return
        turn.command = command
        self.metrics.placements[command.reason] += 1
        worker = self._fleet.worker(command.decoder)
        payload = turn.payload
        leg = turn.decode_leg = DecodeLeg(
            turn, worker.worker_id, is_stream=payload.is_stream, hides_usage=payload.hides_usage
        )
        if turn.history is not None:
            leg.keep_answer()
        members = turn.conversation.session_field if command.keeps_kv else b""
        headers = turn.forward
        turn.prefill_leg = None
        if command.prefiller is not None:
            prefiller = self._fleet.worker(command.prefiller)
            pairing = prefiller.prefiller_fields + b"%d," % next(self._rooms)
            members = pairing + members
            prefill_leg = PrefillLeg(turn, prefiller.worker_id, is_stream=payload.is_stream)
            turn.prefill_leg = prefill_leg
            pieces = request(prefiller.pool.authority, headers, pairing, payload)
            prefill_leg.exchange = prefiller.pool.send(pieces, prefill_leg)
        elif command.limits is not None:
            mark, member = local_mark(payload.endpoint, command.limits.to_routing_key())
            headers += mark
            members = member + members
        else:
            members = b""
        pieces = request(worker.pool.authority, headers, members, payload)
        leg.exchange = worker.pool.send(pieces, leg)

    def _abort(self, command: AbortTurn) -> None:
        turn = self._turns.get(command.turn_id)
        if turn is None:
            return
        sent = turn.command
        decoder_is_gone = sent is None or not self._fleet.is_up(sent.decoder)
        cause = FailureCause.PREFILLER_FAILED
        if decoder_is_gone or sent is None or sent.prefiller is None:
            cause = FailureCause.DECODER_FAILED
        turn.abort(cause, BROKEN_OFF if decoder_is_gone else ENDED)

    def _release(self, command: ReleaseConversation) -> None:
        self._fleet.release(command.worker_id, command.conversation_id)
        conversation = self.conversations.by_key(command.conversation_id)
        if conversation is not None:
            self.conversations.forget_if_gone(conversation)

    # what becomes of turns (Desk)

    def turn_began(self, turn: Turn, is_whole: bool) -> None:
        now = turn.first_byte_at_s = self._clock()
        self.metrics.ttft.observe(now - turn.arrived_at_s)
        if turn.command is not None and turn.command.prefiller is not None:
            self.metrics.num_kv_transfers += 1
        turn.payload.rest = b""  # no further attempt: the body is not needed any more
        if not is_whole:  # else TurnDone follows at once, and says as much
            self.tell(FirstToken(turn_id=turn.turn_id))

    def turn_answered(self, turn: Turn, usage: Usage | None) -> None:
        metrics = self.metrics
        metrics.e2e.observe(self._clock() - turn.arrived_at_s)
        command = turn.command
        if usage is None:
            usage = Usage(prompt_tokens=turn.input_tokens, output_tokens=0, cached_tokens=0)
        else:
            self._learn(turn, usage.prompt_tokens)
            metrics.prompt_tokens += usage.prompt_tokens
            metrics.cached_tokens += usage.cached_tokens
            metrics.output_tokens += usage.output_tokens
            limits = command.limits if command is not None else None
            if limits is not None and usage.cached_tokens < limits.min_cached:
                metrics.num_kv_misses += 1
        self._close(turn.turn_id, Outcome.ANSWERED)
        self.tell(
            TurnDone(
                turn_id=turn.turn_id,
                prompt_tokens=usage.prompt_tokens,
                output_tokens=usage.output_tokens,
                cached_tokens=usage.cached_tokens,
            )
        )
        if turn.ends_conversation:
            self.end_conversation(turn.conversation)
        elif turn.history is not None and turn.decode_leg is not None:
            asyncio.get_running_loop().call_soon(self._file, turn, turn.decode_leg.kept_answer)
        turn.forget_legs()

    def _learn(self, turn: Turn, num_tokens: int) -> None:
        num_bytes = turn.payload.input_bytes
        if num_bytes and num_tokens:
            self.estimate.learn(num_bytes, num_tokens)
            turn.conversation.counted = Counted(num_bytes, num_tokens)
        else:
            turn.conversation.counted = None  # token ids count themselves

    def turn_failed(self, turn: Turn, cause: FailureCause, why: str) -> None:
        self.metrics.failures[cause] += 1
        if cause is FailureCause.PREFIX_MISSING:
            self.metrics.num_kv_misses += 1
        logger.info("turn %d of %s: %s: %s", turn.turn_id, turn.conversation.key, cause.value, why)
        self.tell(TurnFailed(turn_id=turn.turn_id, cause=cause))
        self._mind_queue()

    def turn_abandoned(self, turn: Turn, outcome: Outcome, why: str) -> None:
        logger.info(
            "turn %d of %s: %s: %s", turn.turn_id, turn.conversation.key, outcome.value, why
        )
        self._close(turn.turn_id, outcome)
        turn.forget_legs()
        self.tell(TurnAbandoned(turn_id=turn.turn_id))

    def _close(self, turn_id: TurnId, outcome: Outcome) -> Turn | None:
        turn = self._turns.pop(turn_id, None)
        if turn is None:
            return None
        turn.is_over = True
        self.metrics.turns[outcome] += 1
        conversation = turn.conversation
        conversation.num_open_turns -= 1
        if outcome is not Outcome.ANSWERED:
            history = turn.history
            if history is not None and history.taken_from is not None:
                # The client may come again with the same history.
                self.conversations.refile(conversation, history.taken_from)
            asyncio.get_running_loop().call_soon(self.conversations.forget_if_gone, conversation)
        now = self._clock()
        if now >= self._sweep_at_s:
            self._sweep_at_s = now + SWEEP_INTERVAL_S
            self.conversations.sweep(max(16, len(self.conversations) // 64))
        return turn

    def _file(self, turn: Turn, answer: bytes | None) -> None:
        """File the conversation under the history its client will come back with."""
        if turn.history is None or answer is None:
            return
        conversation = turn.conversation
        if self.conversations.by_key(conversation.key) is not None:
            at = turn.history.end(self.conversations, answer, turn.payload.is_stream)
            self.conversations.refile(conversation, at)

    # time

    def _mind_queue(self) -> None:
        """A turn that waits may bring a nearer deadline; idle conversations only get later ones."""
        if self.dispatcher.num_queued:
            self._set_timer()

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
