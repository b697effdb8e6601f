from typing import Any

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.responses_copies import MAX_BYTES, MAX_DELETED, Copies
from conserve_sglang.router.responses_store import ResponseStore, Stored

A = TenantId("a")
KEY = (A, "r1")
ONE = Stored(b"one", None)


class Site:
    """A store, its copies, and what they said."""

    def __init__(self, max_bytes: int = 10_000) -> None:
        self.now_s = 0.0
        self.store = ResponseStore(max_bytes)
        self.num_wakes = 0
        self.copies = Copies(self.store, 100.0, lambda: self.now_s, self.wake)

    def wake(self) -> None:
        self.num_wakes += 1

    def say(self, answer: Any) -> list[str]:
        """Say one batch, and have each call answered with this."""
        calls = self.copies.news()
        for _, then in calls:
            then(answer)
        return [name for (name, _), _ in calls]


def test_what_is_stored_is_written_once() -> None:
    site = Site()
    site.store.put(*KEY, Stored(b"one", "r0"))
    assert site.num_wakes == 1
    ((call, then),) = site.copies.news()
    assert call == ("KEEP", (A, "r1", b"one", "r0", 703, 10_000, b"", 700, 0))
    assert site.copies.unconfirmed(KEY) is not None
    then(1)
    assert site.copies.unconfirmed(KEY) is None
    assert site.copies.news() == []


def test_text_written_at_a_time_is_bounded() -> None:
    site = Site(10 * MAX_BYTES)
    for number in range(4):
        site.store.put(A, f"r{number}", Stored(bytes(MAX_BYTES * 2 // 3), None))
    assert [len(site.say(1)) for _ in range(3)] == [2, 2, 0]


def test_object_is_written_with_its_response_unless_redis_has_no_room_for_it_at_all() -> None:
    site = Site()
    site.store.max_object_bytes = 1000
    for number, (size, written) in enumerate(((300, b"x" * 300), (301, b""))):
        site.store.put(A, f"r{number}", Stored(b"one", None, b"x" * size))
        ((call, then),) = site.copies.news()
        assert call[1][-3:] == (written, size + 700, 1000)
        then(1)
    assert site.store.object_of(A, "r0") is None  # had to make room here
    assert site.store.object_of(A, "r1") is not None
    assert site.say(1) == []  # and stays in Redis as it is


def test_objects_count_in_what_is_written_at_a_time() -> None:
    site = Site(10 * MAX_BYTES)
    site.store.max_object_bytes = 10 * MAX_BYTES
    for number in range(4):
        site.store.put(A, f"r{number}", Stored(b"x", None, bytes(MAX_BYTES * 2 // 3)))
    assert [len(site.say(1)) for _ in range(3)] == [2, 2, 0]


def test_what_redis_has_no_room_for_at_all_is_kept_here() -> None:
    site = Site(1000)
    site.store.put(*KEY, Stored(b"x" * 400, None))
    assert site.say(1) == []
    assert site.copies.unconfirmed(KEY) is not None


def test_what_has_to_make_room_here_is_not_deleted_there() -> None:
    site = Site(1000)
    for name in ("r1", "r2", "r3"):
        site.store.put(A, name, ONE)
    assert site.say(1) == ["KEEP", "KEEP"]
    site.store.put(A, "r4", ONE)
    assert site.say(1) == ["KEEP"]


def test_copy_of_what_redis_has_is_not_written() -> None:
    site = Site()
    site.copies.add(KEY, ONE)
    site.copies.add(KEY, ONE)
    assert site.store.get(*KEY) == ONE
    assert site.store.num_bytes == 403
    assert site.say(1) == []


def test_what_redis_does_not_have_any_more_goes_unless_it_is_on_its_way_there() -> None:
    site = Site()
    site.store.put(*KEY, ONE)
    site.copies.missed(KEY)
    assert site.store.get(*KEY) == ONE
    site.say(1)
    site.copies.missed(KEY)
    assert site.store.get(*KEY) is None


def test_met_again_redis_is_asked_and_told_what_it_lost() -> None:
    site = Site()
    for name in ("r1", "r2", "r3"):
        site.store.put(A, name, ONE)
    site.say(1)
    site.copies.met()
    ((call, then),) = site.copies.news()
    assert call == ("KNOWN", (A, "r1", A, "r2", A, "r3"))
    then([b"kept", b"missing", b"deleted"])
    assert site.store.get(A, "r3") is None
    ((call, then),) = site.copies.news()
    assert call[1][:2] == (A, "r2")
    then(1)
    assert site.copies.num_unsaid == 0


def test_nothing_is_lost_when_redis_does_not_answer() -> None:
    site = Site()
    site.store.put(*KEY, ONE)
    for _ in range(2):
        assert site.say(None) == ["KEEP"]
        site.copies.met()
        assert site.say(None) == ["KNOWN"]
        site.copies.met()
        assert site.say([b"missing"]) == ["KNOWN"]
    assert site.say(1) == ["KEEP"]


def test_what_was_written_and_then_deleted_by_another_replica_goes() -> None:
    site = Site()
    site.store.put(*KEY, ONE)
    assert site.say(0) == ["KEEP"]
    assert site.store.get(*KEY) is None


def test_deleted_response_is_not_brought_back() -> None:
    site = Site()
    site.copies.add(KEY, ONE)
    site.copies.deleted(KEY)
    site.copies.add(KEY, ONE)  # read before, come after
    assert site.store.get(*KEY) is None
    site.copies.met()
    ((call, _),) = site.copies.news()
    assert call == ("DELETE", (A, "r1", 1))
    site.now_s = 101.0
    site.copies.met()
    assert site.say(1) == []


def test_what_redis_has_not_confirmed_for_a_life_is_not_brought_back() -> None:
    site = Site()
    site.store.put(*KEY, ONE)
    site.copies.add((A, "r2"), ONE)
    site.now_s = 90.0
    site.copies.confirmed((A, "r2"))
    site.now_s = 101.0
    site.copies.met()
    assert site.store.get(*KEY) is None
    assert site.store.get(A, "r2") == ONE


def test_deleted_ones_that_are_remembered_are_bounded() -> None:
    site = Site()
    for number in range(MAX_DELETED + 10):
        site.copies.deleted((A, f"r{number}"))
    site.copies.met()
    said = 0
    while names := site.say("found"):
        said += len(names)
    assert said == MAX_DELETED


def test_what_breaks_the_line_twice_is_kept_here_alone() -> None:
    site = Site(10 * MAX_BYTES)
    site.store.put(A, "large", Stored(bytes(MAX_BYTES + 1), None))
    site.store.put(*KEY, ONE)
    for _ in range(2):
        while "KEEP" in site.say(None):
            pass
        site.copies.met()
        assert site.say([b"missing"] * 2) == ["KNOWN"]
    assert site.say(1) == ["KEEP"]
    assert site.copies.num_unsaid == 0
    assert site.copies.unconfirmed((A, "large")) is not None
