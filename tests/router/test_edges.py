"""Whatever a client sends, the router's edge answers or refuses; it never falls over."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.router.conversations import ConversationTable
from conserve_sglang.router.headers import split_request_headers
from conserve_sglang.router.history import HistoryHash
from conserve_sglang.router.identity import History, name_in
from conserve_sglang.router.payload import FORBIDDEN, BadBody, Endpoint, Payload, read_payload
from conserve_sglang.router.request_reader import RequestReader

GOOD = b'POST /generate HTTP/1.1\r\nhost: x\r\nx-a: b\r\ncontent-length: 12\r\n\r\n{"text":"x"}'

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(
    [*FORBIDDEN, "messages", "prompt", "text", "input_ids", "model", "stream", "stream_options",
     "tools", "user"]
)  # fmt: skip
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"])},
        optional={"content": json_values, "tool_calls": json_values, "tool_call_id": st.text()},
    ),
    max_size=4,
)
bodies = st.dictionaries(names, json_values | messages, min_size=1, max_size=6)


def opened(endpoint: Endpoint, raw: bytes) -> Payload | None:
    """The payload, or None after an orderly refusal; anything else is a failure."""
    try:
        payload = read_payload(endpoint, raw)
        name_in({}, payload, by_user=True)
    except BadBody as refused:
        problem = refused.problem
    else:
        return payload
    assert problem.status == 400
    assert json.loads(problem.to_json())["error"]["message"]
    return None


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_reader_takes_any_bytes(pieces: list[bytes]) -> None:
    reader = RequestReader(1000)
    for piece in pieces:
        reader.feed(piece)


@given(
    st.integers(0, len(GOOD)),
    st.binary(max_size=20),
    st.integers(0, 30),
    st.lists(st.integers(0, 250)),
)
def test_reader_takes_any_damage_and_any_split(
    at: int, inserted: bytes, deleted: int, cuts: list[int]
) -> None:
    data = GOOD[:at] + inserted + GOOD[at + deleted :]
    whole, split = RequestReader(1000), RequestReader(1000)
    whole.feed(data)
    edges = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(edges):
        split.feed(data[start:end])
    assert [r.body for r in whole.ready] == [r.body for r in split.ready]
    for request in whole.ready:
        split_request_headers(request.headers)


@settings(max_examples=300)
@given(st.sampled_from(list(Endpoint)), bodies, st.booleans())
def test_no_body_gets_past_with_a_forbidden_field(
    endpoint: Endpoint, body: dict[str, Any], ascii_only: bool
) -> None:
    raw = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    payload = opened(endpoint, raw)
    if payload is None:
        return
    sent = json.loads(b'{"ours":1,' + payload.inserts + bytes(payload.rest))
    assert not FORBIDDEN & set(sent)
    table = ConversationTable(lambda key: True, secret=b"secret")
    tenant = DEFAULT_TENANT.tenant_id
    table.continued(tenant, History(payload, tenant, HistoryHash(b"secret")).trail)


@given(st.sampled_from(list(Endpoint)), st.binary(max_size=100))
def test_any_bytes_as_a_body_are_read_or_refused(endpoint: Endpoint, raw: bytes) -> None:
    opened(endpoint, raw)
