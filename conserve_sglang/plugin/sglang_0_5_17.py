"""SGLang 0.5.17: KV state lives in the request itself."""

from typing import Any

from conserve_sglang.plugin.adapter import Adapter
from conserve_sglang.plugin.settings import UNIFIED_TREE, Settings


class Sglang0517(Adapter):
    """SGLang 0.5.17."""

    prebuilt_method = "get_new_prebuilt_batch"

    def bind_restored(self, tree_cache: Any, req: Any) -> None:
        """Bind it to the root, which needs no lock, so that it is not matched again.

        Stock matches what has no node a second time and takes what it finds for locked:
        `assert cd.lock_ref > 0` ends the server, and the slots that the match replaced are lost.
        What of its row the tree has already is found, and freed, where the row joins the tree.
        """
        root = tree_cache.root_node_handle(req.extra_key)
        req.last_node = req.last_host_node = req.best_match_node = root
        req.host_hit_length = 0

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

    def is_first_rank(self, scheduler: Any) -> bool:
        return bool(scheduler.ps.tp_rank == 0 and scheduler.ps.pp_rank == 0)

    def release_queued(self, scheduler: Any, req: Any) -> None:
        if scheduler.enable_hicache_storage:
            scheduler.tree_cache.release_aborted_request(req.rid)
