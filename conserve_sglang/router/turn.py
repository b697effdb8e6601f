"""One turn on its way through the router, from its client's request to the last byte."""

import logging
from math import inf
from typing import Protocol

from conserve_sglang.core.ids import TurnId
from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.dispatch import FailureCause
from conserve_sglang.policy.api import RejectReason
from conserve_sglang.router.choices import Choices
from conserve_sglang.router.client import ClientConnection
from conserve_sglang.router.headers import content_length, placement_lines
from conserve_sglang.router.identity import History
from conserve_sglang.router.legs import DecodeLeg
from conserve_sglang.router.measured import MeasuredTurn
from conserve_sglang.router.prefill_leg import PrefillLeg
from conserve_sglang.router.problem import BROKEN_OFF, OWN_FAULT, Problem, rejection
from conserve_sglang.router.sent import Sent
from conserve_sglang.router.translation import Translation, UnreadableAnswer
from conserve_sglang.router.usage_note import UsageNote
from conserve_sglang.telemetry.metrics import Outcome
from conserve_sglang.workers.upstream import Headers
from conserve_sglang.workers.usage import Usage

logger = logging.getLogger(__name__)


class Desk(Protocol):
    """Whoever keeps the turns is told what becomes of each."""

    def turn_began(self, turn: "Turn", is_whole: bool) -> None:
        """The first bytes of the answer are there, or all of them."""
        ...

    def turn_answered(self, turn: "Turn", usage: Usage | None) -> None:
        """The answer is whole."""
        ...

    def turn_failed(
        self, turn: "Turn", cause: FailureCause, why: str, *, by_answer: bool = False
    ) -> None:
        """The attempt failed; the turn stays open."""
        ...

    def turn_interrupted(self, turn: "Turn", num_tokens: int, why: str) -> None:
        """The decoder was lost in the middle of the answer, which may go on elsewhere."""
        ...

    def turn_went_on(self, turn: "Turn") -> None:
        """Another decoder goes on with the answer."""
        ...

    def turn_abandoned(self, turn: "Turn", outcome: Outcome, why: str) -> None:
        """The turn is over without a whole answer."""
        ...


class Turn(MeasuredTurn):
    """Owns its legs and writes to its client; `desk` hears each step."""

    __slots__ = (
        "_desk",
        "choices",
        "client",
        "deadline_s",
        "decode_leg",
        "ends_at_s",
        "ends_conversation",
        "history",
        "input_tokens",
        "is_over",
        "is_sent",
        "last_error",
        "name",
        "prefill_leg",
        "resumption",
        "sent",
        "usage_note",
    )

    def __init__(self, desk: Desk, turn_id: TurnId, client: ClientConnection) -> None:
        super().__init__(turn_id)
        self._desk = desk
        self.client: ClientConnection | None = client
        self.tenant = DEFAULT_TENANT.tenant_id
        self.name: bytes | None = None
        self.history: History | None = None
        self.input_tokens = 0
        self.deadline_s: float | None = None  # how long it may wait, if its client said so
        self.ends_at_s = inf  # when it is stopped, answered or not
        self.ends_conversation = False
        self.usage_note: UsageNote | None = None  # if its client asks for energy
        self.decode_leg: DecodeLeg | None = None
        self.prefill_leg: PrefillLeg | None = None
        self.choices: Choices | None = None  # if it asks for several
        self.sent: Sent | None = None  # of a stream that may go on elsewhere
        self.resumption = b""  # the member that has a decoder go on with it
        self.last_error: Problem | None = None  # what a worker answered the last attempt with
        self.is_over = False
        self.is_sent = False  # and has not failed since

    def spoke_at_s(self) -> float | None:
        """See `Arrival`."""
        leg = self.decode_leg
        return None if leg is None or leg.has_called_tools else self.first_byte_at_s

    # commands

    def rejected(self, reason: RejectReason, retry_after_s: float | None) -> Problem:
        """The error that its client is to be told."""
        problem = rejection(reason, retry_after_s)
        if reason is RejectReason.WORKERS_BUSY and self.last_error is not None:
            problem = self.last_error
        self.problem = problem
        return problem

    def reject(self, problem: Problem) -> None:
        """Answer with an error, or end the stream with one."""
        if self.has_begun:
            self._hang_up(self._last_event(problem))
        else:
            self._end_with(problem)

    def abort(self, cause: FailureCause, problem: Problem) -> None:
        """Stop at the workers; the turn may go on elsewhere."""
        if self.is_over:
            return
        if not self._is_answering:
            self.stop_legs()
            self._desk.turn_failed(self, cause, "aborted")
        elif problem is not BROKEN_OFF:
            self._break_off(problem, "aborted")
        elif not self._interrupt(cause.value):
            self._break_off(problem, cause.value)

    def cannot_go_on(self, why: str) -> None:
        """Nobody can go on with an answer that was interrupted."""
        self._break_off(BROKEN_OFF, why)

    def give_up(
        self,
        problem: Problem = OWN_FAULT,
        why: str = "given up",
        outcome: Outcome = Outcome.BROKEN_OFF,
    ) -> None:
        """End it here and now: for a fault of the router's own, unless told otherwise."""
        if self.is_over:
            return
        if self.has_begun:
            self._break_off(problem, why, outcome)
            return
        self.problem = problem
        self.stop_legs()
        self._desk.turn_abandoned(self, outcome, why)
        self._end_with(problem)

    def stop_legs(self) -> None:
        """Abort what still runs at the workers."""
        if self.decode_leg is not None:
            self.decode_leg.abort()
        if self.prefill_leg is not None:
            self.prefill_leg.abort()

    def forget_legs(self) -> None:
        """The turn is over: untie turn and legs, which point at each other."""
        self.decode_leg = self.prefill_leg = None

    # Asker

    def client_gone(self) -> None:
        self.client = None
        if not self.is_over:
            self.stop_legs()
            self._desk.turn_abandoned(self, Outcome.CLIENT_LEFT, "the client left")

    def client_slow(self) -> None:
        if self.decode_leg is not None and self.decode_leg.exchange is not None:
            self.decode_leg.exchange.pause()

    def client_ready(self) -> None:
        if self.decode_leg is not None and self.decode_leg.exchange is not None:
            self.decode_leg.exchange.resume()

    # LegOwner

    def began(self, status: int, headers: Headers, is_whole: bool) -> None:
        if self.has_begun:
            self._desk.turn_went_on(self)
            return
        self.has_begun = True
        self._desk.turn_began(self, is_whole)
        if self.client is not None:
            payload = self.payload
            translation = payload.translation
            is_changed = payload.hides_usage or translation is not None
            is_changed |= self.usage_note is not None
            length = None if is_changed else content_length(headers)
            ours = self.conversation.header_line
            if translation is not None:
                ours += translation.header_lines
            sent = self.command
            if sent is not None:
                ours += placement_lines(sent.decoder, sent.prefiller, sent.reason)
            self.client.begin(status, headers, ours, length)

    def pass_on(self, data: bytes, is_last: bool) -> None:
        client = self.client
        if client is None:
            return
        if is_last:
            self.client = None
        if self.payload.translation is not None:
            told = self._told(self.payload.translation, client, data, is_last)
            if told is None or not (told or is_last):
                return
            data = told
        if self.usage_note is not None:
            turn_index = 0 if self.command is None else self.command.turn_index
            data = self.usage_note.feed(data, is_last, self.conversation, turn_index)
            if not data and not is_last:
                return
        client.send(data, is_last)

    def answered(self, usage: Usage | None) -> None:
        self._desk.turn_answered(self, usage)

    def failed(self, cause: FailureCause, why: str, answer: Problem | None = None) -> None:
        if not self._is_answering and not self.is_over:
            self.stop_legs()
            self.last_error = answer
            self._desk.turn_failed(self, cause, why, by_answer=answer is not None)

    def refused(self, problem: Problem) -> None:
        if self._is_answering or self.is_over:
            return
        if self.has_begun:
            self._break_off(BROKEN_OFF, f"{problem.status} {problem.code}")
        else:
            self.problem = problem
            self.stop_legs()
            self._desk.turn_abandoned(self, Outcome.REFUSED, f"{problem.status} {problem.code}")
            self._end_with(problem)

    def broke_off(self, why: str) -> None:
        if not self.is_over and not self._interrupt(why):
            self._break_off(BROKEN_OFF, why)

    # inside

    def _told(
        self, translation: Translation, client: ClientConnection, data: bytes, is_last: bool
    ) -> bytes | None:
        """An answer's bytes in its client's words; None if the client has had its last word."""
        try:
            return translation.feed(data, is_last)
        except UnreadableAnswer as unreadable:
            client.answer_problem(unreadable.problem, self.conversation.header_line)
        except Exception:
            logger.exception("the answer of turn %d could not be translated", self.turn_id)
            if self.is_over:
                client.break_off(translation.problem_event(OWN_FAULT))
            else:
                self.give_up()
        return None

    @property
    def _is_answering(self) -> bool:
        """Whether the decoder the turn was sent to has begun to answer."""
        return self.decode_leg is not None and self.decode_leg.has_begun

    def _interrupt(self, why: str) -> bool:
        """Let another decoder go on with the answer, if what the client has of it is known."""
        resumption = None if self.sent is None else self.sent.continuation()
        if self.sent is None or resumption is None:
            return False
        self.stop_legs()
        self.resumption = resumption
        self._desk.turn_interrupted(self, self.sent.num_tokens, why)
        return True

    def _break_off(self, problem: Problem, why: str, outcome: Outcome = Outcome.BROKEN_OFF) -> None:
        event = self._last_event(problem)
        self.problem = problem
        self.stop_legs()
        self._desk.turn_abandoned(self, outcome, why)
        self._hang_up(event)

    def _last_event(self, problem: Problem) -> bytes:
        if not self.payload.is_stream or self.decode_leg is None:
            return b""
        if self.payload.translation is not None:
            return self.payload.translation.problem_event(problem)
        return (b"" if self.decode_leg.is_between_events else b"\n\n") + problem.to_event()

    def _hang_up(self, event: bytes) -> None:
        client, self.client = self.client, None
        if client is not None:
            client.break_off(event)

    def _end_with(self, problem: Problem) -> None:
        client, self.client = self.client, None
        if client is not None:
            client.answer_problem(problem, self.conversation.header_line)
