"""Turns as OpenTelemetry spans: one trace for a conversation, a span for each turn and attempt.

The trace's id is the conversation's key, so every process and replica adds to the same trace. A
client that sends a `traceparent` gets the turn as a span of its own trace, with a link to the
conversation's. Workers are told the attempt's span as theirs.
"""

import re
import threading
import time
from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from conserve_sglang.core.ids import TurnId
from conserve_sglang.dispatch import FailureCause, SendTurn
from conserve_sglang.router.measured import MeasuredTurn
from conserve_sglang.router.request_ids import id_in
from conserve_sglang.telemetry.metrics import Outcome
from conserve_sglang.telemetry.tracing import Tracing
from conserve_sglang.workers.usage import Usage

STOP_S = 3.0
_PARENT = re.compile(rb"(?i)traceparent: *00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2}) *\r\n")
_OF_A_SPAN_ID = (1 << 64) - 1


class _Open:
    """A turn's span, and that of the attempt under way."""

    __slots__ = ("attempt", "turn")

    def __init__(self, turn: Span) -> None:
        self.turn = turn
        self.attempt: Span | None = None

    def end_attempt(self, failure: str | None) -> None:
        """The attempt is over."""
        if self.attempt is not None:
            if failure is not None:
                self.attempt.set_status(Status(StatusCode.ERROR, failure))
            self.attempt.end()
            self.attempt = None


class TurnTraces:
    """Listens to turns; those of traces that are not kept cost a look at their key."""

    def __init__(self, tracing: Tracing, clock: Callable[[], float]) -> None:
        self._tracing = tracing
        self._wall_less_clock_s = time.time() - clock()
        self._open: dict[TurnId, _Open] = {}

    def sent(self, turn: MeasuredTurn, command: SendTurn) -> None:
        spans = self._open.get(turn.turn_id)
        if spans is None:
            if command.attempt > 1:
                return
            span = self._started(turn, is_first=command.turn_index == 1)
            if span is None:
                return
            spans = self._open[turn.turn_id] = _Open(span)
        spans.end_attempt(None)
        span = spans.attempt = self._tracing.tracer.start_span(
            "attempt",
            context=set_span_in_context(spans.turn, Context()),
            kind=SpanKind.CLIENT,
            attributes={
                "conserve.attempt": command.attempt,
                "conserve.reason": command.reason.value,
                "conserve.decoder": command.decoder,
                **({} if command.prefiller is None else {"conserve.prefiller": command.prefiller}),
            },
        )
        own = span.get_span_context()
        line = b"traceparent: 00-%032x-%016x-%02x\r\n" % (
            own.trace_id, own.span_id, own.trace_flags & TraceFlags.SAMPLED,
        )  # fmt: skip
        turn.forward = _PARENT.sub(b"", turn.forward) + line

    def began(self, turn: MeasuredTurn) -> None:
        spans = self._open.get(turn.turn_id)
        if spans is None:
            return
        command = turn.command
        if command is not None and command.prefiller is not None:
            # When exactly it was over, the router cannot see.
            attributes = {"conserve.prefiller": command.prefiller}
            spans.turn.add_event(
                "kv_transferred", {**attributes, "conserve.decoder": command.decoder}
            )
        spans.turn.add_event("first_token")

    def failed(self, turn: MeasuredTurn, cause: FailureCause) -> None:
        spans = self._open.get(turn.turn_id)
        if spans is not None:
            spans.end_attempt(cause.value)

    def closed(
        self, turn: MeasuredTurn, outcome: Outcome, usage: Usage | None, total_s: float
    ) -> None:
        spans = self._open.pop(turn.turn_id, None)
        if spans is None:
            if turn.command is not None:
                return  # not kept
            span = self._started(turn, is_first=False)  # never sent
            if span is None:
                return
            spans = _Open(span)
        is_fine = outcome in (Outcome.ANSWERED, Outcome.CLIENT_LEFT)
        spans.end_attempt(None if is_fine else outcome.value)
        span = spans.turn
        span.set_attribute("conserve.outcome", outcome.value)
        if turn.command is not None:
            span.set_attribute("conserve.turn", turn.command.turn_index)
            span.set_attribute("conserve.attempts", turn.command.attempt)
            span.set_attribute("conserve.decoder", turn.command.decoder)
            span.set_attribute("conserve.reason", turn.command.reason.value)
        if usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
            span.set_attribute("conserve.cached_tokens", usage.cached_tokens)
        if not is_fine:
            span.set_status(Status(StatusCode.ERROR, outcome.value))
        span.end()

    def stop(self) -> None:
        """Send what is left; a collector that does not answer is not waited for long."""
        sender = threading.Thread(target=self._tracing.provider.shutdown, daemon=True)
        sender.start()
        sender.join(STOP_S)

    def _started(self, turn: MeasuredTurn, *, is_first: bool) -> Span | None:
        """The turn's span; None if its trace is not kept."""
        conversation = turn.conversation
        trace_id = int(conversation.key.rpartition("-")[2], 16)
        own = self._context(trace_id)
        parent = _PARENT.search(turn.forward)
        links: tuple[Link, ...] = ()
        if parent is not None:
            theirs = SpanContext(
                int(parent[1], 16), int(parent[2], 16), True, TraceFlags(int(parent[3], 16))
            )
            if not theirs.trace_flags.sampled:
                return None
            context = set_span_in_context(NonRecordingSpan(theirs), Context())
            links = (Link(own),)
        elif not own.trace_flags.sampled:
            return None
        elif is_first:
            self._tracing.ids.choose(trace_id, own.span_id)
            context = Context()
        else:
            context = set_span_in_context(NonRecordingSpan(own), Context())
        return self._tracing.tracer.start_span(
            "turn",
            context=context,
            kind=SpanKind.SERVER,
            links=links,
            start_time=int((self._wall_less_clock_s + turn.arrived_at_s) * 1e9),
            attributes={
                "conserve.conversation": conversation.key,
                "conserve.tenant": turn.tenant,
                "conserve.request_id": id_in(turn.request_line),
                "url.path": turn.payload.endpoint.value,
            },
        )

    def _context(self, trace_id: int) -> SpanContext:
        """The conversation's trace, as its first turn's span begins it."""
        kept = (trace_id & _OF_A_SPAN_ID) < self._tracing.ratio.bound
        flags = TraceFlags(TraceFlags.SAMPLED if kept else TraceFlags.DEFAULT)
        return SpanContext(trace_id, trace_id & _OF_A_SPAN_ID or 1, True, flags)
