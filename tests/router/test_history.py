from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.history import BLOCK_BYTES, FiledAt, HistoryHash, HistoryIndex

TENANT, OTHER = TenantId("tenant"), TenantId("other")
HASH = HistoryHash(b"secret")
A, B, C = b"user: a", b"assistant: b", b"user: c"


def chat(messages: list[bytes]) -> FiledAt:
    return HASH.chat(TENANT, messages[:-1]).end(messages[-1])


def ended(kind: bytes, prompt: bytes, said: bytes = b"") -> FiledAt:
    return HASH.prompt(TENANT, kind, prompt).end(said)


def test_longest_known_beginning_wins() -> None:
    index = HistoryIndex()
    index.file("short", chat([A]))
    index.file("long", chat([A, B]))
    found = index.take(HASH.chat(TENANT, [A, B, C]))
    assert found is not None
    assert found[0] == "long"


def test_taken_conversation_is_gone_until_filed_again() -> None:
    index = HistoryIndex()
    at = chat([A, B])
    index.file("x", at)
    index.file("y", at)
    taken = {index.take(HASH.chat(TENANT, [A, B, C]))[0] for _ in range(2)}  # type: ignore[index]
    assert taken == {"x", "y"}
    assert index.take(HASH.chat(TENANT, [A, B, C])) is None
    assert len(index) == 0


def test_other_answer_is_another_history() -> None:
    index = HistoryIndex()
    index.file("x", chat([A, B]))
    assert index.take(HASH.chat(TENANT, [A, b"assistant: other", C])) is None
    assert index.take(HASH.chat(TENANT, [A])) is None


def test_messages_cannot_run_into_each_other() -> None:
    index = HistoryIndex()
    index.file("x", chat([b"ab", b"c"]))
    assert index.take(HASH.chat(TENANT, [b"a", b"bc"])) is None


def test_hashes_are_keyed() -> None:
    first, second = HistoryHash(b"one"), HistoryHash(b"another")
    assert first.chat(TENANT, [A]).digests != second.chat(TENANT, [A]).digests


def test_another_tenants_history_is_not_found() -> None:
    index = HistoryIndex()
    index.file("x", chat([A, B]))
    index.file("y", ended(b"text", b"abc"))
    assert index.take(HASH.chat(OTHER, [A, B, C])) is None
    assert index.take(HASH.prompt(OTHER, b"text", b"abcdef")) is None
    assert index.take(HASH.chat(TENANT, [A, B, C])) is not None
    assert index.take(HASH.prompt(TENANT, b"text", b"abcdef")) is not None


def test_text_and_token_ids_do_not_meet() -> None:
    index = HistoryIndex()
    index.file("x", ended(b"text", b"abc"))
    assert index.take(HASH.prompt(TENANT, b"tokens", b"abcdef")) is None
    assert index.take(HASH.prompt(TENANT, b"text", b"abcdef")) is not None


@given(
    st.binary(max_size=3 * BLOCK_BYTES),
    st.binary(max_size=BLOCK_BYTES),
    st.integers(-1, 1),
)
def test_prompt_that_goes_on_is_found(prompt: bytes, more: bytes, whole_blocks: int) -> None:
    if whole_blocks >= 0:  # the edges between blocks deserve their share
        prompt = prompt[: whole_blocks * BLOCK_BYTES]
    index = HistoryIndex()
    at = ended(b"text", prompt)
    index.file("x", at)
    longer = b"?" + prompt
    index.file("other", ended(b"text", longer))
    found = index.take(HASH.prompt(TENANT, b"text", prompt + more))
    assert found is not None
    assert found == ("x", at) or (found[0] == "other" and (prompt + more).startswith(longer))


@given(
    st.binary(max_size=3 * BLOCK_BYTES),
    st.binary(max_size=2 * BLOCK_BYTES),
    st.integers(-1, 2),
)
def test_answer_is_hashed_as_if_it_had_been_in_the_prompt(
    prompt: bytes, said: bytes, whole_blocks: int
) -> None:
    if whole_blocks >= 0:
        prompt = prompt[: whole_blocks * BLOCK_BYTES]
    assert ended(b"text", prompt, said) == ended(b"text", prompt + said)


@given(st.lists(st.binary(max_size=2 * BLOCK_BYTES), min_size=1, max_size=6))
def test_filing_and_unfiling_leaves_nothing(prompts: list[bytes]) -> None:
    index = HistoryIndex()
    ends = [ended(b"text", prompt) for prompt in prompts]
    for number, at in enumerate(ends):
        index.file(str(number), at)
    for number, at in enumerate(ends):
        index.unfile(str(number), at)
        index.unfile(str(number), at)
    assert not index._ends
    assert not index._lengths


def test_conversations_of_one_history_are_taken_one_by_one_and_then_none_is_left() -> None:
    index = HistoryIndex()
    at, trail = ended(b"text", b"abc"), HASH.prompt(TENANT, b"text", b"abcdef")
    for name in ("x", "y", "z"):
        index.file(name, at)
    index.unfile("y", at)
    index.unfile("nobody", at)
    assert [index.take(trail) for _ in range(3)] == [("z", at), ("x", at), None]
    index.file("x", at)
    index.unfile("nobody", at)
    assert index.take(trail) == ("x", at)
    assert not index._ends
    assert not index._lengths


def test_longer_of_two_prompts_wins() -> None:
    index = HistoryIndex()
    index.file("short", ended(b"text", b"a" * 100))
    index.file("long", ended(b"text", b"a" * 200))
    index.file("longest", ended(b"text", b"a" * 3000))
    assert index.take(HASH.prompt(TENANT, b"text", b"a" * 2999))[0] == "long"  # type: ignore[index]
    assert index.take(HASH.prompt(TENANT, b"text", b"a" * 5000))[0] == "longest"  # type: ignore[index]
    assert index.take(HASH.prompt(TENANT, b"text", b"a" * 150))[0] == "short"  # type: ignore[index]
