"""What the hook bodies ask of SGLang that is not spelled the same in every supported version.

The parts all versions share are here; `sglang_0_5_23.py` and `sglang_0_5_17.py` fill in the rest.
"""

from abc import ABC, abstractmethod
from http import HTTPStatus
from importlib import import_module
from typing import Any

from conserve_sglang.core.errors import UnsupportedSglang
from conserve_sglang.plugin.settings import Settings

_ADAPTERS = {
    "0.5.17": ("conserve_sglang.plugin.sglang_0_5_17", "Sglang0517"),
    "0.5.23": ("conserve_sglang.plugin.sglang_0_5_23", "Sglang0523"),
}


class Adapter(ABC):
    """One SGLang version, as the hook bodies see it."""

    prebuilt_method: str
    """The `Scheduler` method that takes transferred requests from the waiting queue."""

    @abstractmethod
    def holds_kv(self, req: Any) -> bool:
        """Whether the request owns a row and KV: transferred, restored, or being prefilled."""

    @abstractmethod
    def prefix_tokens(self, req: Any) -> int:
        """Tokens of the request whose KV is on the device."""

    @abstractmethod
    def drop_kv_backup(self, scheduler: Any, req: Any) -> None:
        """Forget the host copy of a retracted request's KV."""

    @abstractmethod
    def is_first_rank(self, scheduler: Any) -> bool:
        """Whether this is the first of the processes that compute a model together."""

    @abstractmethod
    def release_queued(self, scheduler: Any, req: Any) -> None:
        """Drop what the cache noted about a request that leaves the queue unserved."""

    def bind_restored(self, tree_cache: Any, req: Any) -> None:
        """Give a request restored after a retraction its place in the tree; stock does mostly."""
        return

    def setting_problems(self, settings: Settings) -> list[str]:
        """Reasons in the environment why this version cannot take local turns."""
        return []

    def cached_tokens(self, scheduler: Any, req: Any) -> int:
        """Match the request against the radix tree now; takes no lock."""
        req.init_next_round_input(scheduler.tree_cache)
        return self.matched_tokens(req)

    def matched_tokens(self, req: Any) -> int:
        """Tokens matched last time, on the device or in host memory."""
        return self.prefix_tokens(req) + int(req.host_hit_length)

    def passed_over(self) -> Any:
        """The batch picker's answer for a request it should leave out and go on."""
        return import_module("sglang.srt.managers.schedule_policy").AddReqResult.CONTINUE

    def end_refused(self, scheduler: Any, req: Any, message: str, status: HTTPStatus) -> None:
        """End a request that never ran, as SGLang's own intake does when it says 400."""
        prepare_abort = import_module("sglang.srt.disaggregation.utils").prepare_abort
        prepare_abort(req, message, status_code=status)
        req.time_stats.trace_ctx.abort(abort_info={"reason": message})
        self.release_queued(scheduler, req)
        scheduler.output_streamer.stream_output([req], req.return_logprob)


def adapter_for(version: str) -> Adapter:
    """The adapter of an SGLang version."""
    if version not in _ADAPTERS:
        raise UnsupportedSglang(
            f"SGLang {version} is not supported; supported: {', '.join(sorted(_ADAPTERS))}."
        )
    module, name = _ADAPTERS[version]
    adapter: Adapter = getattr(import_module(module), name)()
    return adapter
