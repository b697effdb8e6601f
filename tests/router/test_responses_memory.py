from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.responses_memory import MAX_WRITTEN_BYTES, ResponsesMemory
from conserve_sglang.router.responses_store import ResponseStore, Stored
from conserve_sglang.state import SavedResponse

A = TenantId("a")


def saved(name: str, previous: str | None = None, messages: bytes = b"x") -> SavedResponse:
    return SavedResponse("a", name, previous, messages)


def test_what_changed_is_taken_once_and_in_order() -> None:
    store = ResponseStore(10_000)
    memory = ResponsesMemory(store)
    store.put(A, "before", Stored(b"x", None))
    memory.restore([])
    store.put(A, "r1", Stored(b"x", None))
    store.put(A, "r2", Stored(b"x", "r1"))
    store.put(A, "r3", Stored(b"x", None))
    store.drop(A, "r3")
    assert memory.take() == ([saved("r1"), saved("r2", "r1")], [(A, "r3")])
    assert memory.take() == ([], [])
    store.drop(A, "r1")
    taken = memory.take()
    assert taken == ([], [(A, "r1")])
    memory.put_back(*taken)
    assert memory.take() == taken


def test_restored_responses_are_not_written_again_but_those_without_room_go() -> None:
    store = ResponseStore(1500)
    memory = ResponsesMemory(store)
    memory.restore([saved("r1"), saved("r2", "r1"), saved("r3"), saved("r4", "r3", b"y")])
    assert store.history(A, "r4") == [b"x", b"y"]
    assert store.history(A, "r2") is None
    assert memory.take() == ([], [(A, "r1")])


def test_what_is_let_go_of_is_forgotten() -> None:
    store = ResponseStore(1000)
    memory = ResponsesMemory(store)
    memory.restore([])
    for name in ("r1", "r2", "r3"):
        store.put(A, name, Stored(b"x", None))
    assert memory.take() == ([saved("r2"), saved("r3")], [(A, "r1")])


def test_bytes_taken_at_a_time_are_bounded() -> None:
    store = ResponseStore(10 * MAX_WRITTEN_BYTES)
    memory = ResponsesMemory(store)
    memory.restore([])
    for number in range(4):
        store.put(A, f"r{number}", Stored(bytes(MAX_WRITTEN_BYTES * 2 // 3), None))
    counts = [len(memory.take()[0]) for _ in range(3)]
    assert counts == [2, 2, 0]


def test_object_that_had_to_go_is_not_kept_in_the_file() -> None:
    store = ResponseStore(10_000, 1000)
    memory = ResponsesMemory(store)
    whole = [saved(name)._replace(response=b"y" * 700) for name in ("r1", "r2")]
    memory.restore(whole)
    assert memory.take() == ([saved("r1")], [])
    store.put(A, "r3", Stored(b"x", None, b"y" * 700))
    assert memory.take() == ([whole[1]._replace(response_id="r3"), saved("r2")], [])
    store.put(A, "r4", Stored(b"x", None, bytes(500)))
    assert len(memory.take()[0]) == 2


def test_objects_count_in_what_is_taken_at_a_time() -> None:
    store = ResponseStore(10_000, 10 * MAX_WRITTEN_BYTES)
    memory = ResponsesMemory(store)
    memory.restore([])
    for number in range(4):
        store.put(A, f"r{number}", Stored(b"x", None, bytes(MAX_WRITTEN_BYTES * 2 // 3)))
    assert [len(memory.take()[0]) for _ in range(3)] == [2, 2, 0]
