from types import SimpleNamespace

from conserve_sglang.plugin import restored
from conserve_sglang.plugin.adapter import adapter_for
from conserve_sglang.plugin.hooks import decoder_hooks
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.settings import read_settings
from tests.plugin.stub import inside

RESUME = "sglang.srt.disaggregation.decode.DecodePreallocQueue.resume_retracted_reqs"


class Tree:
    def root_node_handle(self, extra_key: str | None = None) -> str:
        return f"root of {extra_key}"


def test_restored_requests_are_bound_to_the_root_and_not_matched_again() -> None:
    """0.5.17 matches what has no `last_node`, and releases there a lock that nobody took."""
    req = SimpleNamespace(last_node=None, extra_key="k", best_match_node=5, host_hit_length=9)
    queue = SimpleNamespace(tree_cache=Tree())
    assert restored.resume_retracted_reqs(inside()[0], [req], queue, ["rid"]) == [req]
    assert req.last_node == req.last_host_node == req.best_match_node == "root of k"
    assert req.host_hit_length == 0


def test_only_the_version_that_matches_again_is_hooked_there() -> None:
    def hooked(version: str) -> bool:
        settings = read_settings({})
        context = Inside(sglang_version=version, adapter=adapter_for(version), settings=settings)
        return any(hook.target == RESUME for hook in decoder_hooks(context))

    assert [hooked("0.5.17"), hooked("0.5.23")] == [True, False]
