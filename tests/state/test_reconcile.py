"""Which stored pins still hold."""

from conserve_sglang.state import MetWorker, Reconciled, SavedConversation, reconcile
from tests.state.builders import a_saved

MET = {"d0": MetWorker(incarnation="one", kv_capacity_tokens=1000)}


def judged(*saved: SavedConversation, met: dict[str, MetWorker] | None = None) -> Reconciled:
    workers = MET if met is None else met
    return reconcile(saved, workers, {"p0", "d0", "d1"}, oldest_at_wall=500.0)


def keys(saved: list[SavedConversation]) -> list[str]:
    return [each.key for each in saved]


def test_a_pin_on_the_same_incarnation_holds() -> None:
    found = judged(a_saved("a"))
    assert (keys(found.pinned), found.unpinned, found.releases) == (["a"], [], {})


def test_a_pin_on_a_restarted_worker_is_dropped_and_nothing_is_released_there() -> None:
    found = judged(a_saved("a", incarnation="zero"), a_saved("b", incarnation=None))
    assert (found.pinned, keys(found.unpinned)) == ([], ["b", "a"])
    assert (found.num_restarted, found.releases) == (2, {})


def test_a_pin_on_a_worker_that_left_the_tier_map_is_dropped() -> None:
    found = judged(a_saved("a", worker="d7"))
    assert (keys(found.unpinned), found.num_removed, found.absent) == (["a"], 1, [])


def test_a_pin_on_a_worker_not_met_yet_may_come_back() -> None:
    found = judged(a_saved("a", worker="d1"))
    assert (keys(found.unpinned), keys(found.absent), found.num_removed) == (["a"], ["a"], 0)


def test_the_longest_idle_lose_their_pin_where_the_pool_is_too_small() -> None:
    saved = [
        a_saved(f"c{age}", resident_tokens=400, last_active_at_wall=1000.0 - age)
        for age in (30, 10, 20)
    ]
    found = judged(*saved)
    assert keys(found.pinned) == ["c20", "c10"]
    assert keys(found.unpinned) == ["c30"]
    assert (found.num_over_capacity, found.releases) == (1, {"d0": ["c30"]})


def test_the_past_of_its_time_ends_and_is_released_where_its_kv_still_is() -> None:
    found = judged(
        a_saved("a", last_active_at_wall=499.0),
        a_saved("b", last_active_at_wall=499.0, incarnation="zero"),
        a_saved("c", last_active_at_wall=499.0, worker=None),
    )
    assert sorted(keys(found.ended)) == ["a", "b", "c"]
    assert (found.pinned, found.unpinned, found.num_restarted) == ([], [], 0)
    assert found.releases == {"d0": ["a"]}


def test_a_conversation_without_a_pin_is_kept_without_one() -> None:
    found = judged(a_saved("a", worker=None, incarnation=None))
    assert (keys(found.unpinned), found.absent, found.num_removed) == (["a"], [], 0)


def test_both_lists_begin_with_the_longest_idle() -> None:
    saved = [
        a_saved(f"{worker}{age}", worker=worker, last_active_at_wall=1000.0 - age)
        for worker in ("d0", "d7")
        for age in (3, 1, 2)
    ]
    found = judged(*saved)
    assert keys(found.pinned) == ["d03", "d02", "d01"]
    assert keys(found.unpinned) == ["d73", "d72", "d71"]


def test_a_worker_that_tells_no_incarnation_is_taken_at_its_word() -> None:
    met = {"d0": MetWorker(incarnation=None, kv_capacity_tokens=1000)}
    assert keys(judged(a_saved("a", incarnation=None), met=met).pinned) == ["a"]
