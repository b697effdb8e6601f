"""The decoder's answer to a turn, which is passed on.

Nothing reaches the client before it is clear that the decoder took the turn: of a stream its first
whole event is waited for, since SGLang reports errors and refusals there, behind a head that says
200. Any other answer is held until it is whole, so that the turn can still be tried elsewhere.
"""

from typing import Protocol

from conserve_sglang.core.errors import WorkerError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.local_turn import Refusal
from conserve_sglang.dispatch import FailureCause
from conserve_sglang.router.problem import Problem, from_worker
from conserve_sglang.router.sent import Sent
from conserve_sglang.router.verdict import error_in, failure_cause
from conserve_sglang.workers.pool import Exchange
from conserve_sglang.workers.sse import UsageFilter
from conserve_sglang.workers.upstream import Headers
from conserve_sglang.workers.usage import TAIL_BYTES, Usage, calls_tools, usage_in, usage_of

MAX_ERROR_BYTES = 64 * 1024
MAX_HELD_ANSWER_BYTES = 8 * 1024 * 1024  # a longer answer is passed on as it comes
MAX_KEPT_ANSWER_BYTES = 1024 * 1024
_MAX_ENDS = 16  # pieces, before the tail of an answer is cut from them
_DONE = b"data: [DONE]\n\n"
_LEN_DONE = len(_DONE)


class LegOwner(Protocol):
    """The turn, as its legs know it."""

    def began(self, status: int, headers: Headers, is_whole: bool) -> None:
        """The decoder's first body bytes are there; `is_whole` if they are also the last."""
        ...

    def pass_on(self, data: bytes, is_last: bool) -> None:
        """Body bytes for the client."""
        ...

    def answered(self, usage: Usage | None) -> None:
        """The decoder's answer is whole."""
        ...

    def failed(self, cause: FailureCause, why: str, answer: Problem | None = None) -> None:
        """A worker failed before the first byte; the turn may be tried elsewhere.

        `answer`: the error that it answered with, if it did.
        """
        ...

    def refused(self, problem: Problem) -> None:
        """A worker refused the request itself; trying elsewhere would not help."""
        ...

    def broke_off(self, why: str) -> None:
        """The decoder's answer ended in the middle."""
        ...


class DecodeLeg:
    """The decoder's answer to one attempt at a turn."""

    __slots__ = (
        "_early",
        "_ends",
        "_filter",
        "_headers",
        "_held",
        "_held_bytes",
        "_hides_usage",
        "_is_passing",
        "_is_stream",
        "_is_watched",
        "_kept",
        "_kept_bytes",
        "_owner",
        "_sent",
        "_status",
        "exchange",
        "has_begun",
        "worker_id",
    )

    def __init__(
        self,
        owner: LegOwner,
        worker_id: WorkerId,
        is_stream: bool,
        hides_usage: bool,
        sent: Sent | None,
    ) -> None:
        self._owner = owner
        self.worker_id = worker_id
        self.exchange: Exchange | None = None
        self._is_stream = is_stream
        self._hides_usage = hides_usage
        self._sent = sent
        self._is_watched = sent is not None
        self._filter: UsageFilter | None = None
        if sent is not None:
            self._filter = UsageFilter(sent.told, hides_usage=hides_usage)
        elif hides_usage:
            self._filter = UsageFilter()
        self._status = 0
        self._headers: Headers = []
        self._early = b""
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._ends: list[bytes] = []
        self.has_begun = False
        self._is_passing = False  # from the first bytes for the client to the last
        self._kept: list[bytes] | None = None
        self._kept_bytes = 0

    def keep_answer(self, begun: "DecodeLeg | None") -> None:
        """Keep the answer's bytes, up to a bound, for whoever wants to read it afterwards.

        `begun` is the leg whose answer this one goes on with, if there is one.
        """
        self._kept = []
        self._is_watched = True
        if begun is not None:
            self._kept, self._kept_bytes = begun._kept, begun._kept_bytes

    @property
    def kept_answer(self) -> bytes | None:
        """The whole answer, if it was to be kept and was not too long."""
        return None if self._kept is None else b"".join(self._kept)

    @property
    def is_between_events(self) -> bool:
        """Whether what was passed on ends with a whole event."""
        if self._filter is not None:
            return not self._filter.is_passing
        return self._end().endswith(b"\n\n")

    @property
    def has_called_tools(self) -> bool:
        """Whether the whole answer asks for tools rather than speaks to a user."""
        return calls_tools(self._end() or (self._filter.before_usage if self._filter else b""))

    def abort(self) -> None:
        """Stop the worker's work on it; nothing more is heard."""
        if self.exchange is not None:
            self.exchange.abort()
            self.exchange = None

    # ResponseSink

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status
        self._headers = headers

    def on_body(self, data: bytes, is_last: bool) -> None:
        if not self._is_passing:
            self._take_first(data, is_last)
            return
        if self._filter is not None:
            data = self._filter.feed(data)
            if is_last:
                data += self._filter.flush()
        if self._is_watched:
            self._watch(data)
        if not self._hides_usage:
            ends = self._ends
            ends.append(data)
            if len(ends) > _MAX_ENDS or len(data) > TAIL_BYTES:
                self._ends = [self._end()]
        if data.endswith(_DONE) or len(data) < _LEN_DONE:
            is_last = is_last or self._is_done(data)
        if is_last:
            self._finish(data)
        elif data:
            self._owner.pass_on(data, False)

    def on_broken(self, error: WorkerError) -> None:
        self.exchange = None
        if not self.has_begun:
            self._owner.failed(FailureCause.DECODER_FAILED, str(error))
        elif not self._is_passing:  # it was whole
            return
        elif self._lacks_only_its_end():
            self.on_body(_DONE, True)
        else:
            self._owner.broke_off(str(error))

    # inside

    def _take_first(self, data: bytes, is_last: bool) -> None:
        if self.has_begun:
            return  # and was whole
        if self._status != 200:
            self._early += data
            if is_last or len(self._early) > MAX_ERROR_BYTES:
                self._fail(self._status, self._early)
            return
        if not self._is_stream:
            self._hold(data, is_last)
            return
        if self._early:
            data = self._early + data
        if b"\n\n" not in data and not is_last and len(data) <= MAX_ERROR_BYTES:
            self._early = data
            return
        error = error_in(data)
        if error is not None:
            self._fail(error[0], error[1].encode())
            return
        self._early = b""
        self._begin(data, is_last)

    def _hold(self, data: bytes, is_last: bool) -> None:
        """Let nothing of an answer go before it is whole, unless it is very long."""
        self._held.append(data)
        self._held_bytes += len(data)
        if is_last or self._held_bytes > MAX_HELD_ANSWER_BYTES:
            data = b"".join(self._held)
            self._held.clear()
            self._begin(data, is_last)

    def _lacks_only_its_end(self) -> bool:
        """Whether a stream broke off behind all there was to say."""
        if self._filter is None:
            return False
        if self._filter.usage is not None:  # the last event before the end
            return True
        return self._sent is not None and self._sent.is_complete()

    def _begin(self, data: bytes, is_last: bool) -> None:
        self.has_begun = self._is_passing = True
        if self._is_stream and self.exchange is not None and not is_last:
            self.exchange.follow_stream()
        self._owner.began(self._status, self._headers, is_last)
        self.on_body(data, is_last)

    def _fail(self, status: int, body: bytes) -> None:
        self.abort()
        cause = failure_cause(status, body)
        if cause is None:
            self._owner.refused(from_worker(status, body))
        else:
            self._owner.failed(cause, why(status, body), from_worker(status, body))

    def _end(self) -> bytes:
        """The last bytes passed on, of an answer that keeps its usage."""
        return b"".join(self._ends)[-TAIL_BYTES:]

    def _is_done(self, data: bytes) -> bool:
        """Whether a stream is whole with these bytes for its reader, who may leave now.

        The end of the chunks follows in a segment of its own, and the connection waits for it by
        itself.
        """
        if not self._is_stream:
            return False
        return data.endswith(_DONE) or (not self._hides_usage and self._end().endswith(_DONE))

    def _finish(self, data: bytes) -> None:
        """These are the last bytes."""
        self._is_passing = False
        self.exchange = None
        hidden = self._filter.usage if self._filter is not None else None
        self._owner.answered(hidden if self._hides_usage else self._usage(data))
        self._owner.pass_on(data, True)

    def _usage(self, last: bytes) -> Usage | None:
        """The token counts of an answer of which these are the last bytes."""
        end = self._end()
        if not self._is_stream and len(last) <= TAIL_BYTES and end == last:
            return usage_of(last)
        return usage_in(end)

    def _watch(self, data: bytes) -> None:
        """Note what the client gets, as long as that is of use."""
        sent = self._sent
        if sent is not None and not sent.is_begun and data:
            sent.take(data)
        if self._kept is not None:
            self._kept_bytes += len(data)
            self._kept.append(data)
            if self._kept_bytes > MAX_KEPT_ANSWER_BYTES:
                self._kept = None
        self._is_watched = self._kept is not None or (sent is not None and not sent.is_begun)


def why(status: int, body: bytes) -> str:
    """For the log: of a worker's words a refusal at most, since the rest may quote the prompt."""
    refusal = Refusal.from_message(body.decode("utf-8", "replace"))
    return f"it answered {status}" if refusal is None else refusal.to_message()
