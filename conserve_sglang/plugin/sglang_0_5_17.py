"""SGLang 0.5.17: KV state lives in the request itself."""

from typing import Any

from conserve_sglang.plugin.adapter import Adapter
from conserve_sglang.plugin.settings import UNIFIED_TREE, Settings


class Sglang0517(Adapter):
    """SGLang 0.5.17."""

    prebuilt_method = "get_new_prebuilt_batch"
    rematches_restored = True

    def setting_problems(self, settings: Settings) -> list[str]:
        if settings.unified_tree:
            return []
        return [f"SGLang 0.5.17 keeps sessions in the unified tree alone: set {UNIFIED_TREE}=1"]

    def holds_kv(self, req: Any) -> bool:
        return req.req_pool_idx is not None

    def prefix_tokens(self, req: Any) -> int:
        return len(req.prefix_indices)

    def drop_kv_backup(self, scheduler: Any, req: Any) -> None:
        req.__dict__.pop("kv_cache_cpu", None)

    def release_queued(self, scheduler: Any, req: Any) -> None:
        if scheduler.enable_hicache_storage:
            scheduler.tree_cache.release_aborted_request(req.rid)
