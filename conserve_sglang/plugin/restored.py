"""Hook on the way back from retraction.

Stock restores a retracted request when there is room beside a reserve for each request that runs or
waits. Local requests in turn wait until all retracted ones are back, so they may not count: with
enough of them neither would ever go on.
"""

from typing import Any

from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.local_request import needs_extend
from conserve_sglang.plugin.queue_view import narrowed


def resume_retracted_reqs(
    inside: Inside, original: Any, queue: Any, *args: Any, **kwargs: Any
) -> Any:
    """Restore as stock does, with no reserve for requests that hold no KV yet."""

    def holds_kv(req: Any) -> bool:
        return not needs_extend(req, inside.adapter)

    with narrowed(queue.scheduler, holds_kv):
        restored = original(queue, *args, **kwargs)
    for req in restored:
        inside.adapter.bind_restored(queue.tree_cache, req)
    return restored
