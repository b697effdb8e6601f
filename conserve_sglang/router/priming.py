"""Sends turns that ask for several choices (`n`), which no pair of workers can answer.

SGLang sends all choices, and a warm-up before them, through the one bootstrap room of a request:
that hangs. So a turn whose KV has to be moved is *primed* first: prefiller and decoder are sent the
same prompt for one choice of one token, which moves the KV once. Then the request itself goes to
the decoder alone, as a local turn of which all but a page has to be there. Both are one attempt:
what fails in either is retried and blamed as with any turn, and stopped as with any.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.dispatch import FailureCause, KvMoved, SendTurn
from conserve_sglang.router.legs import DecodeLeg
from conserve_sglang.router.payload import Endpoint
from conserve_sglang.router.ports import FleetView
from conserve_sglang.router.prefill_leg import PrefillLeg
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.turn import Turn
from conserve_sglang.router.wire import request
from conserve_sglang.router.worker import Worker
from conserve_sglang.workers.upstream import Headers
from conserve_sglang.workers.usage import Usage

logger = logging.getLogger(__name__)

SLACK_TOKENS = 128
"""How much of a primed prompt may be missing: KV is kept in pages, the last token has none."""

ONE_CHOICE_ONLY = Problem(
    status=400,
    code="one_choice_only",
    message="The field 'n' must be 1: this turn's decoder prefills nothing itself, and SGLang"
    " cannot serve several answers to one request with prefill/decode disaggregation. Ask as often"
    " as you want answers, or let decoders prefill locally (see README.md).",
    param="n",
)


class Marks(Protocol):
    """What goes with a request as its routing key: header lines, and JSON members."""

    def __call__(
        self, turn: Turn, command: SendTurn, limits: LocalLimits | None
    ) -> tuple[bytes, bytes]: ...


class SeveralChoices:
    """Carries `SendTurn` out for turns that ask for several choices."""

    def __init__(
        self,
        fleet: FleetView,
        rooms: Iterator[int],
        marks: Marks,
        tell: Callable[[KvMoved], None],
    ) -> None:
        self._fleet = fleet
        self._rooms = rooms
        self._marks = marks
        self._tell = tell

    def send(self, turn: Turn, command: SendTurn) -> None:
        """Send one attempt."""
        assert turn.choices is not None
        turn.choices.cached_tokens = None
        turn.prefill_leg = None
        decoder = self._fleet.worker(command.decoder)
        if command.prefiller is None:
            self._ask(turn, command, decoder, command.limits)
        elif decoder.serves_local_turns:
            self._prime(turn, command, decoder, self._fleet.worker(command.prefiller))
        else:
            turn.refused(ONE_CHOICE_ONLY)

    def _prime(self, turn: Turn, command: SendTurn, decoder: Worker, prefiller: Worker) -> None:
        """Have the KV moved."""
        assert turn.choices is not None
        payload = turn.choices.priming(turn.payload)
        priming = Priming(turn, lambda usage: self._primed(turn, command, usage))
        header, member = self._marks(turn, command, None)
        headers = turn.forward + header
        pairing = member + prefiller.prefiller_fields + b"%d," % next(self._rooms)
        leg = turn.decode_leg = DecodeLeg(priming, decoder.worker_id, False, False, None)
        prefill_leg = turn.prefill_leg = PrefillLeg(priming, prefiller.worker_id, False)
        pieces = request(prefiller.pool.head_lines, headers, pairing, payload)
        prefill_leg.exchange = prefiller.pool.send(pieces, prefill_leg)
        members = pairing + _session(turn, command)
        pieces = request(decoder.pool.head_lines, headers, members, payload)
        leg.exchange = decoder.pool.send(pieces, leg)

    def _primed(self, turn: Turn, command: SendTurn, usage: Usage | None) -> None:
        """The KV is at the decoder: ask it for the choices."""
        assert turn.choices is not None
        try:
            self._tell(KvMoved(turn.turn_id))
            if turn.is_over or turn.command is not command:
                return
            turn.choices.cached_tokens = None if usage is None else usage.cached_tokens
            prompt_tokens = 0 if usage is None else usage.prompt_tokens
            limits = LocalLimits(SLACK_TOKENS, max(0, prompt_tokens - SLACK_TOKENS))
            self._ask(turn, command, self._fleet.worker(command.decoder), limits)
        except Exception:  # a fault of ours costs this turn and no other
            logger.exception("turn %d could not be sent after its KV", turn.turn_id)
            turn.give_up()

    def _ask(
        self, turn: Turn, command: SendTurn, decoder: Worker, limits: LocalLimits | None
    ) -> None:
        """Send the request itself to the decoder alone."""
        payload = turn.payload
        leg = DecodeLeg(turn, decoder.worker_id, payload.is_stream, payload.hides_usage, None)
        if turn.history is not None or payload.endpoint is Endpoint.GENERATE:
            leg.keep_answer(None)
        turn.decode_leg = leg
        header, members = self._marks(turn, command, limits)
        if limits is not None:
            members += _session(turn, command)
        pieces = request(decoder.pool.head_lines, turn.forward + header, members, payload)
        leg.exchange = decoder.pool.send(pieces, leg)


def counted(turn: Turn, usage: Usage | None) -> tuple[Usage | None, Usage | None]:
    """What all choices of an answered turn took, and what one did."""
    choices, leg, payload = turn.choices, turn.decode_leg, turn.payload
    if usage is None or choices is None:
        return usage, usage
    is_native = payload.endpoint is Endpoint.GENERATE
    answer = leg.kept_answer if is_native and leg is not None else None
    usage = choices.counted(usage, answer, is_stream=payload.is_stream)
    return usage, choices.one_of(usage)


def _session(turn: Turn, command: SendTurn) -> bytes:
    return turn.conversation.session_field if command.keeps_kv else b""


class Priming:
    """Hears the pair's answers to a priming request; `go_on` is called once the KV was moved."""

    def __init__(self, turn: Turn, go_on: Callable[[Usage | None], None]) -> None:
        self._turn = turn
        self._go_on = go_on
        self._is_over = False

    # LegOwner

    def began(self, status: int, headers: Headers, is_whole: bool) -> None:
        pass

    def pass_on(self, data: bytes, is_last: bool) -> None:
        pass

    def answered(self, usage: Usage | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._go_on(usage)

    def failed(self, cause: FailureCause, why: str, answer: Problem | None = None) -> None:
        if not self._is_over:
            self._is_over = True
            self._turn.failed(cause, f"moving the KV: {why}", answer)

    def refused(self, problem: Problem) -> None:
        if not self._is_over:
            self._is_over = True
            self._turn.refused(problem)

    def broke_off(self, why: str) -> None:
        self._turn.stop_legs()
        self._turn.decode_leg = None  # nothing of it has reached the client
        self.failed(FailureCause.DECODER_FAILED, why)
