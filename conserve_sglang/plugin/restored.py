"""Hook on the way back from retraction, for SGLang 0.5.17 alone.

Stock restores a retracted request into a row of slots that are all its own. When the request joins
the running batch again, 0.5.17 matches it against the radix tree a second time and takes what it
finds for locked: `assert cd.lock_ref > 0` ends the server, and the slots of the row that the match
replaced are lost. A request bound to the root, which needs no lock, is not matched again; what of
its row the tree has already is then found and freed where the row is put into the tree. 0.5.23 does
the same where 0.5.17 matches.
"""

from typing import Any

from conserve_sglang.plugin.inside import Inside


def resume_retracted_reqs(
    inside: Inside, restored: list[Any], queue: Any, *args: Any, **kwargs: Any
) -> list[Any]:
    """Bind restored requests to the root of the tree."""
    for req in restored:
        root = queue.tree_cache.root_node_handle(req.extra_key)
        req.last_node = req.last_host_node = req.best_match_node = root
        req.host_hit_length = 0
    return restored
