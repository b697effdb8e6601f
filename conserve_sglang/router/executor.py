"""Carries out the brain's commands over the workers, and tells it what happened."""

import asyncio
import logging
from collections.abc import Callable
from math import inf
from typing import Any

from conserve_sglang.core.continuation import TELL_LINE
from conserve_sglang.core.ids import TurnId
from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.core.turn_tag import tagged
from conserve_sglang.dispatch import (
    AbortTurn,
    BlameWorker,
    Command,
    FailureCause,
    FirstToken,
    RejectTurn,
    ReleaseConversation,
    SendTurn,
    TurnAbandoned,
    TurnFailed,
    TurnInterrupted,
)
from conserve_sglang.router.conversations import Conversation, shown_name
from conserve_sglang.router.legs import DecodeLeg
from conserve_sglang.router.listeners import TurnListener
from conserve_sglang.router.meter import Meter
from conserve_sglang.router.ports import BrainPort, FleetView
from conserve_sglang.router.prefill_leg import PrefillLeg
from conserve_sglang.router.priming import SeveralChoices, counted
from conserve_sglang.router.problem import BROKEN_OFF, ENDED, TURN_TIMEOUT, Problem
from conserve_sglang.router.request_ids import id_in
from conserve_sglang.router.turn import Turn
from conserve_sglang.router.wire import mark, request
from conserve_sglang.telemetry.logs import as_text, told
from conserve_sglang.telemetry.metrics import Outcome, RouterMetrics
from conserve_sglang.workers.bootstrap import rooms
from conserve_sglang.workers.usage import Usage

logger = logging.getLogger(__name__)


DECODER_REMOVED = FailureCause.DECODER_REMOVED
PREFILLER_REMOVED = FailureCause.PREFILLER_REMOVED
TIMEOUT_SWEEP_S = 0.25
PROCESS_SHIFT = 40
"""A turn's number begins, above these bits, with the number of the process that holds it."""


class Executor:
    """Between the brain, which decides, and the workers: holds the turns and their legs."""

    def __init__(
        self,
        brain: BrainPort,
        fleet: FleetView,
        metrics: RouterMetrics,
        clock: Callable[[], float],
        number: int = 0,
        listeners: tuple[TurnListener, ...] = (),
    ) -> None:
        self.tags_turns = False  # whether workers are told whose turn a request is
        self.logs_names = False  # whether logs have what clients call conversations
        self.meter = Meter(metrics, fleet, clock, listeners)
        self._brain = brain
        self._fleet = fleet
        self._turns: dict[TurnId, Turn] = {}
        self._last_turn_id = number << PROCESS_SHIFT
        self._rooms = rooms()
        self._clock = clock
        self._sweeper: asyncio.TimerHandle | None = None
        self._several = SeveralChoices(fleet, self._rooms, self._marks, brain.tell)

    @property
    def num_open_turns(self) -> int:
        """Turns that have arrived and are not over."""
        return len(self._turns)

    def next_turn_id(self) -> TurnId:
        """A number no turn had before."""
        self._last_turn_id += 1
        return TurnId(self._last_turn_id)

    def arrive(self, turn: Turn) -> None:
        """Take in a turn."""
        self.meter.arrived(turn)
        self._turns[turn.turn_id] = turn
        self._brain.arrive(turn)

    def identified(self, turn_id: TurnId, conversation: Conversation) -> None:
        """A turn that came without a name belongs to a conversation."""
        turn = self._turns.get(turn_id)
        if turn is not None:
            turn.conversation = conversation

    def end_turns(self, problem: Problem) -> None:
        """End every turn with an error, in its answer or in place of one.

        Those that wait go first, the last of them before the others: none is sent to a worker for
        the room that another leaves.
        """
        self._end_all(list(self._turns.values()), problem, Outcome.BROKEN_OFF)

    def bound(self, turn: Turn, timeout_s: float) -> None:
        """End a turn that is to arrive now if it is open after so many seconds, or up to
        `TIMEOUT_SWEEP_S` later. While no open turn is bound nobody looks."""
        turn.ends_at_s = self._clock() + timeout_s
        if self._sweeper is None:
            self._sweep_later()

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(TIMEOUT_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = self._clock()
        late = [turn for turn in self._turns.values() if turn.ends_at_s <= now]
        self._end_all(late, TURN_TIMEOUT, Outcome.TIMED_OUT)
        self._sweeper = None
        if any(turn.ends_at_s < inf for turn in self._turns.values()):
            self._sweep_later()

    def _end_all(self, turns: list[Turn], problem: Problem, outcome: Outcome) -> None:
        turns.reverse()
        for has_begun in (False, True):
            for turn in turns:
                if turn.has_begun is has_begun:
                    self._end(turn, problem, outcome)

    def _end(self, turn: Turn, problem: Problem, outcome: Outcome) -> None:
        try:
            turn.give_up(problem, problem.code, outcome)
        except Exception:  # the other turns' clients are to be told as well
            logger.exception("turn %d could not be ended in order", turn.turn_id)

    def stop(self) -> None:
        """Let go of every turn."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for turn in tuple(self._turns.values()):
            turn.stop_legs()

    # commands

    def carry_out(self, command: Command) -> None:
        """Do what the brain asks for; a fault of ours costs this turn and no other."""
        try:
            if command.__class__ is SendTurn:
                self._send(command)
            else:
                self._carry_out(command)
        except Exception:
            self._give_up(command)

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, RejectTurn):
            turn = self._turns.get(command.turn_id)
            if turn is not None:
                has_begun = turn.has_begun
                problem = turn.rejected(command.reason, command.retry_after_s)
                self._close(turn.turn_id, Outcome.BROKEN_OFF if has_begun else Outcome.REJECTED)
                self.meter.rejected(turn, command.reason)
                self._brain.unanswered(turn)
                turn.reject(problem)
        elif isinstance(command, AbortTurn):
            self._abort(command)

    def _give_up(self, command: Command) -> None:
        """One command failed through a fault of ours: the other turns' go on."""
        logger.exception("the router could not carry out %s", command)
        if isinstance(command, ReleaseConversation | BlameWorker):
            return  # not ours to carry out
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
        turn.is_sent = True
        self.meter.sent(turn, command)
        if turn.choices is not None:
            self._several.send(turn, command)
            return
        worker = self._fleet.worker(command.decoder)
        payload = turn.payload
        if turn.resumption and not self._can_go_on(command):
            turn.cannot_go_on("it was placed where no answer can be continued")
            return
        sent = turn.sent if worker.can_continue else None
        leg = DecodeLeg(turn, worker.worker_id, payload.is_stream, payload.hides_usage, sent)
        if turn.history is not None:
            leg.keep_answer(turn.decode_leg if turn.resumption else None)
        turn.decode_leg = leg
        members = turn.conversation.session_field if command.keeps_kv else b""
        header, member = self._marks(turn, command, command.limits)
        headers = turn.forward + header
        turn.prefill_leg = None
        if command.prefiller is not None:
            prefiller = self._fleet.worker(command.prefiller)
            pairing = prefiller.prefiller_fields + b"%d," % next(self._rooms) + turn.resumption
            pairing, members = member + pairing, member + pairing + members
            prefill_leg = PrefillLeg(turn, prefiller.worker_id, payload.is_stream)
            turn.prefill_leg = prefill_leg
            pieces = request(prefiller.pool.head_lines, headers, pairing, payload)
            prefill_leg.exchange = prefiller.pool.send(pieces, prefill_leg)
        else:
            members = member + members if command.limits is not None else member
        if sent is not None and not sent.is_native:
            headers += TELL_LINE
        pieces = request(worker.pool.head_lines, headers, members, payload)
        leg.exchange = worker.pool.send(pieces, leg)

    def _marks(
        self, turn: Turn, command: SendTurn, limits: LocalLimits | None
    ) -> tuple[bytes, bytes]:
        """What goes with the request as its routing key: header lines, and JSON members."""
        routing_key = None if limits is None else limits.to_routing_key()
        if self.tags_turns:
            routing_key = tagged(routing_key, turn.conversation.key, command.turn_index)
        return (b"", b"") if routing_key is None else mark(turn.payload.endpoint, routing_key)

    def _can_go_on(self, command: SendTurn) -> bool:
        """Whether these workers can go on with an answer that others began."""
        prefiller = command.prefiller
        return (
            prefiller is not None
            and self._fleet.worker(prefiller).can_continue
            and self._fleet.worker(command.decoder).can_continue
        )

    def _abort(self, command: AbortTurn) -> None:
        turn = self._turns.get(command.turn_id)
        if turn is None:
            return
        sent, fleet = turn.command, self._fleet
        if sent is not None and not turn.is_sent:
            return  # crossed by word of its failure: the next attempt is not to be stopped
        decoder_is_gone = sent is None or not fleet.is_up(sent.decoder)
        if sent is not None and not decoder_is_gone and sent.prefiller is not None:
            is_removed = fleet.is_removed(sent.prefiller)
            cause = PREFILLER_REMOVED if is_removed else FailureCause.PREFILLER_FAILED
        else:
            is_removed = sent is not None and fleet.is_removed(sent.decoder)
            cause = DECODER_REMOVED if is_removed else FailureCause.DECODER_FAILED
        turn.abort(cause, BROKEN_OFF if decoder_is_gone else ENDED)

    # what becomes of turns (Desk)

    def turn_began(self, turn: Turn, is_whole: bool) -> None:
        self.meter.began(turn)
        if turn.sent is None:
            turn.payload.rest = b""  # no further attempt: the body is not needed any more
            if turn.choices is not None:
                turn.choices.forget_request()
        if not is_whole:  # else TurnDone follows at once, and says as much
            self._brain.tell(FirstToken(turn.turn_id))

    def turn_answered(self, turn: Turn, usage: Usage | None) -> None:
        one = usage
        if turn.choices is None:
            self.meter.answered(turn, usage)
        else:
            usage, one = counted(turn, usage)
            self.meter.answered_several(turn, usage)
        self._close(turn.turn_id, Outcome.ANSWERED, usage)
        self._brain.answered(turn, one)
        if turn.ends_conversation:
            self._brain.end_conversation(turn.conversation)
        elif turn.history is not None and turn.decode_leg is not None:
            asyncio.get_running_loop().call_soon(self._file, turn, turn.decode_leg.kept_answer)
        turn.forget_legs()

    def turn_failed(
        self, turn: Turn, cause: FailureCause, why: str, *, by_answer: bool = False
    ) -> None:
        turn.is_sent = False
        self.meter.failed(turn, cause)
        self._log("turn_failed", turn, cause.value, why)
        self._brain.tell(TurnFailed(turn_id=turn.turn_id, cause=cause, by_answer=by_answer))

    def turn_interrupted(self, turn: Turn, num_tokens: int, why: str) -> None:
        self._log("turn_interrupted", turn, f"interrupted after {num_tokens} tokens", why)
        turn.is_sent = False
        self.meter.interrupted(turn)
        self._brain.tell(TurnInterrupted(turn_id=turn.turn_id, output_tokens=num_tokens))

    def turn_went_on(self, turn: Turn) -> None:
        self.meter.went_on(turn)
        self._brain.tell(FirstToken(turn_id=turn.turn_id))

    def turn_abandoned(self, turn: Turn, outcome: Outcome, why: str) -> None:
        self._log("turn_unanswered", turn, outcome.value, why)
        if self._close(turn.turn_id, outcome) is not None:
            self._brain.unanswered(turn)
        turn.forget_legs()
        self._brain.tell(TurnAbandoned(turn_id=turn.turn_id))

    def _close(self, turn_id: TurnId, outcome: Outcome, usage: Usage | None = None) -> Turn | None:
        turn = self._turns.pop(turn_id, None)
        if turn is not None:
            turn.is_over = True
            self.meter.closed(turn, outcome, usage)
        return turn

    def _file(self, turn: Turn, answer: bytes | None) -> None:
        """File the conversation under the history its client will come back with."""
        if turn.history is None or answer is None:
            return
        try:
            at = turn.history.end(answer, turn.payload.is_stream)
            self._brain.file(turn.conversation, at)
        except Exception:  # not to the event loop: it would log the answer
            logger.exception("the answer to turn %d could not be filed", turn.turn_id)

    def _log(self, event: str, turn: Turn, cause: str, why: str) -> None:
        """`why` may hold no word of a worker's answer: workers quote prompts."""
        command = turn.command
        fields: dict[str, Any] = {
            "request_id": id_in(turn.request_line),
            "turn_id": turn.turn_id,
            "conversation": turn.conversation.key or None,
            "decoder": None if command is None else command.decoder,
            "prefiller": None if command is None else command.prefiller,
            "cause": cause,
            "why": why,
        }
        of: str | None = turn.conversation.key or None
        if self.logs_names:
            fields["name"] = shown_name(turn.conversation)
            of = as_text({"conversation": of, "name": fields["name"]})
        level = logging.WARNING if event == "turn_interrupted" else logging.INFO
        said = (turn.turn_id, fields["request_id"], of, cause, why)
        logger.log(level, "turn %d (%s) of %s: %s: %s", *said, extra=told(event, **fields))
