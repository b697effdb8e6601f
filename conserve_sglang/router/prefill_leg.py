"""The prefiller's answer to a turn, which is drained."""

from conserve_sglang.core.errors import WorkerError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.dispatch import FailureCause
from conserve_sglang.router.legs import MAX_ERROR_BYTES, LegOwner, why
from conserve_sglang.router.problem import from_worker
from conserve_sglang.router.verdict import error_in, prefill_failure_cause
from conserve_sglang.workers.pool import Exchange
from conserve_sglang.workers.upstream import Headers


class PrefillLeg:
    """The prefiller's answer to one attempt: only whether it failed matters."""

    __slots__ = ("_early", "_has_begun", "_is_stream", "_owner", "_status", "exchange", "worker_id")

    def __init__(self, owner: LegOwner, worker_id: WorkerId, is_stream: bool) -> None:
        self._owner = owner
        self.worker_id = worker_id
        self.exchange: Exchange | None = None
        self._is_stream = is_stream
        self._status = 0
        self._early = b""
        self._has_begun = False

    def abort(self) -> None:
        """Stop the worker's work on it; nothing more is heard."""
        if self.exchange is not None:
            self.exchange.abort()
            self.exchange = None

    # ResponseSink

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status

    def on_body(self, data: bytes, is_last: bool) -> None:
        if not self._has_begun:
            self._take_first(data, is_last)
        if is_last and self.exchange is not None:
            self.exchange.close()
            self.exchange = None

    def on_broken(self, error: WorkerError) -> None:
        self.exchange = None
        self._owner.failed(FailureCause.PREFILLER_FAILED, str(error))

    def _take_first(self, data: bytes, is_last: bool) -> None:
        self._early += data
        is_whole = is_last or len(self._early) > MAX_ERROR_BYTES
        if self._status != 200:
            if is_whole:
                self._fail(self._status, self._early)
        elif not self._is_stream:
            self._begin()
        elif is_whole or b"\n\n" in self._early:
            error = error_in(self._early)
            if error is None:
                self._begin()
            else:
                self._fail(error[0], error[1].encode())

    def _begin(self) -> None:
        self._has_begun = True
        self._early = b""

    def _fail(self, status: int, body: bytes) -> None:
        self._begin()
        self.abort()
        cause = prefill_failure_cause(status)
        if cause is None:
            self._owner.refused(from_worker(status, body))
        else:
            self._owner.failed(cause, why(status, body), from_worker(status, body))
