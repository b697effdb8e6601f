"""SGLang 0.5.23: KV state lives in `req.kv`, and the prebuilt batch is made in an inner method."""

from importlib import import_module
from typing import Any

from conserve_sglang.plugin.adapter import Adapter


class Sglang0523(Adapter):
    """SGLang 0.5.23."""

    prebuilt_method = "_get_new_prebuilt_batch"

    def holds_kv(self, req: Any) -> bool:
        return bool(req.kv.holds_kv)

    def prefix_tokens(self, req: Any) -> int:
        return int(req.prefix_len)

    def drop_kv_backup(self, scheduler: Any, req: Any) -> None:
        discard = import_module("sglang.srt.mem_cache.common").discard_kv_cache_backup
        context = import_module("sglang.srt.runtime_context")
        backup = context.get_disagg().disaggregation_decode_retraction_backup
        discard(req, scheduler.tree_cache, backup)

    def is_first_rank(self, scheduler: Any) -> bool:
        ranks = import_module("sglang.srt.runtime_context").get_parallel()
        return bool(ranks.tp_rank == 0 and ranks.pp_rank == 0)

    def release_queued(self, scheduler: Any, req: Any) -> None:
        scheduler._release_aborted_request(req)
