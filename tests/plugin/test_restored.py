from types import SimpleNamespace
from typing import Any

from conserve_sglang.plugin import restored
from conserve_sglang.plugin.adapter import adapter_for
from tests.plugin.stub import Req, Scheduler, inside


class Tree:
    def root_node_handle(self, extra_key: str | None = None) -> str:
        return f"root of {extra_key}"


def test_no_room_is_reserved_for_local_requests_that_wait_for_the_retracted() -> None:
    """Stock reserves for each waiting request; the two kinds would wait for each other."""
    scheduler = Scheduler(Req("a"), Req("t", local=False, kv=True), Req("b"))
    queue = SimpleNamespace(scheduler=scheduler, tree_cache=Tree())
    counted: list[str] = []

    def stock(queue: Any, rids: list[str]) -> list[str]:
        counted.extend(queue.scheduler.queued)
        return rids

    assert restored.resume_retracted_reqs(inside()[0], stock, queue, ["r"]) == ["r"]
    assert counted == ["t"]
    assert sorted(scheduler.queued) == ["a", "b", "t"]


def test_restored_requests_of_0_5_17_are_bound_to_the_root_and_not_matched_again() -> None:
    """0.5.17 matches what has no `last_node`, and releases there a lock that nobody took."""
    req = SimpleNamespace(last_node=None, extra_key="k", best_match_node=5, host_hit_length=9)
    adapter_for("0.5.17").bind_restored(Tree(), req)
    assert req.last_node == req.last_host_node == req.best_match_node == "root of k"
    assert req.host_hit_length == 0


def test_0_5_23_binds_restored_requests_itself() -> None:
    req = SimpleNamespace(last_node=None)
    adapter_for("0.5.23").bind_restored(Tree(), req)
    assert req.last_node is None
