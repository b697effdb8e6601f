from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.responses_store import ResponseStore, Stored

A, B = TenantId("a"), TenantId("b")


def test_history_is_told_from_its_beginning() -> None:
    store = ResponseStore(10_000)
    store.put(A, "r1", Stored(b"1", None))
    store.put(A, "r2", Stored(b"2", "r1"))
    store.put(A, "r3", Stored(b"3", "r1"))
    assert store.history(A, "r2") == [b"1", b"2"]
    assert store.history(A, "r3") == [b"1", b"3"]


def test_another_tenants_response_is_unknown() -> None:
    store = ResponseStore(10_000)
    store.put(A, "r1", Stored(b"1", None))
    assert store.history(B, "r1") is None
    assert not store.drop(B, "r1")
    assert store.history(A, "r1") == [b"1"]


def test_those_used_longest_ago_go_first() -> None:
    store = ResponseStore(1500)
    for name in ("r1", "r2", "r3"):
        store.put(A, name, Stored(b"x", None))
    assert store.history(A, "r1") is not None
    store.put(A, "r4", Stored(b"x", None))
    assert [name for name in ("r1", "r2", "r3", "r4") if store.history(A, name)] == [
        "r1",
        "r3",
        "r4",
    ]
    assert store.num_bytes <= 1500


def test_history_with_a_gap_is_unknown() -> None:
    store = ResponseStore(10_000)
    store.put(A, "r1", Stored(b"1", None))
    store.put(A, "r2", Stored(b"2", "r1"))
    assert store.drop(A, "r1")
    assert store.history(A, "r2") is None


def test_what_is_dropped_gives_its_room_back() -> None:
    store = ResponseStore(1000)
    for n in range(50):
        store.put(A, f"r{n}", Stored(b"x" * n * 30, None))
        assert store.num_bytes <= 1000
        store.drop(A, f"r{n}")
    assert (len(store), store.num_bytes) == (0, 0)


def test_entry_larger_than_the_store_is_not_kept() -> None:
    store = ResponseStore(1000)
    store.put(A, "r1", Stored(b"x" * 2000, None))
    assert (len(store), store.num_bytes) == (0, 0)


def a_store_of_objects() -> ResponseStore:
    store = ResponseStore(10_000, 1000)
    for name in ("r1", "r2", "r3"):
        store.put(A, name, Stored(b"x", None, b"y" * 200))
        store.object_of(A, "r1")
    return store


def test_object_goes_before_what_is_gone_on_from() -> None:
    store, lightened = a_store_of_objects(), []
    store.lightened = lambda tenant, name: lightened.append((tenant, name))
    assert [store.object_of(A, name) for name in ("r1", "r2")] == [b"y" * 200, None]
    assert store.num_object_bytes == 800
    assert store.object_of(B, "r1") is None
    store.put(A, "r4", Stored(b"x", None, b"y" * 700))
    assert [name for name in ("r1", "r3", "r4") if store.object_of(A, name)] == ["r4"]
    assert lightened == [(A, "r3"), (A, "r1")]
    assert store.history(A, "r1") == [b"x"]
    assert len(store) == 4


def test_object_goes_with_its_response() -> None:
    store = a_store_of_objects()
    for name in ("r1", "r3"):
        store.drop(A, name)
        assert store.object_of(A, name) is None
    assert store.num_object_bytes == 0
    small = ResponseStore(900, 10_000)
    for name in ("r1", "r2", "r3"):
        small.put(A, name, Stored(b"x", None, b"y"))
        small.put(A, name, Stored(b"x", None, b"y"))
    assert (len(small), small.num_bytes, small.num_object_bytes) == (2, 802, 402)


def test_object_larger_than_its_room_is_left_out() -> None:
    store = ResponseStore(10_000, 1000)
    store.put(A, "r1", Stored(b"x", None, b"y" * 801))
    assert store.get(A, "r1") == Stored(b"x", None)
    store.put(A, "r1", Stored(b"x", None, b"y" * 800))
    assert store.object_of(A, "r1") == b"y" * 800
