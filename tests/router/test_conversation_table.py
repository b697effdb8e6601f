"""Keys and names of conversations: derived, found again, and never across tenants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.conversations import ConversationTable, conversation_key
from conserve_sglang.router.history import HistoryHash

SECRET = b"of the router"
A, B = TenantId("a"), TenantId("b")
tenants = st.sampled_from([A, B, TenantId("ab"), TenantId("default")])
names = st.one_of(
    st.sampled_from([b"", b"task", b"b", b"\0b", b"a\0task", b"\xff"]), st.binary(max_size=40)
)


def a_table(live: bool = True) -> ConversationTable:
    return ConversationTable(lambda key: live, SECRET)


@given(tenants, names, tenants, names)
def test_keys_are_equal_only_for_one_name_of_one_tenant(
    tenant: TenantId, name: bytes, other_tenant: TenantId, other_name: bytes
) -> None:
    key = conversation_key(SECRET, tenant, name)
    other = conversation_key(SECRET, other_tenant, other_name)
    assert (key == other) == ((tenant, name) == (other_tenant, other_name))
    assert conversation_key(b"other secret", tenant, name) != key
    assert len(key) == len("conv-") + 32


@given(st.lists(st.tuples(tenants, names), max_size=12), tenants)
def test_no_tenant_finds_what_is_not_its_own(
    taken: list[tuple[TenantId, bytes]], asker: TenantId
) -> None:
    table = a_table()
    all_of_them = [table.named(tenant, name) for tenant, name in taken]
    all_of_them += [table.new(tenant) for tenant, _ in taken]
    for conversation in all_of_them:
        for name in (conversation.name, conversation.key.encode()):
            found = table.find(asker, name)
            assert found is None or found.tenant == asker
            assert table.named(conversation.tenant, name) is conversation


def test_name_that_is_another_tenants_key_begins_a_conversation_of_its_own() -> None:
    table = a_table()
    theirs = table.named(A, b"task")
    own = table.named(B, theirs.key.encode())
    assert own.tenant == B
    assert own.key != theirs.key
    assert table.by_key(theirs.key) is theirs


def test_label_of_an_unnamed_conversation_is_its_name() -> None:
    table = a_table()
    first, second = table.new(A), table.new(A)
    assert first.name != second.name
    assert table.named(A, first.name) is first
    assert first.name in first.header_line


@pytest.mark.parametrize("name", [b"line\r\nx: y", " näme".encode(), b"trailing "])
def test_name_that_fits_no_header_is_not_put_into_one(name: bytes) -> None:
    conversation = a_table().named(A, name)
    assert conversation.header_line == b"x-conversation-id: %b\r\n" % conversation.key.encode()


def test_gone_conversations_leave_nothing() -> None:
    table = a_table(live=False)
    for tenant in (A, B):
        conversation = table.named(tenant, b"task")
        table.refile(conversation, HistoryHash(b"secret").chat(tenant, []).end(b"hello"))
        table.new(tenant)
    for _ in range(2):  # the first one only looks what there is
        table.sweep(10)
    assert len(table) == len(table.history) == 0
    assert table.find(A, b"task") is table.find(B, b"task") is None
