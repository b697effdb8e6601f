"""Conversations over the wire: named, found by history, looked up, ended."""

from typing import Any

import pytest

from tests.fakes.router_cluster import Cluster, a_cluster

Messages = list[dict[str, Any]]
OPENING: Messages = [{"role": "user", "content": "hello"}]
ANSWER: dict[str, Any] = {"role": "assistant", "content": "the answer"}


async def chat(cluster: Cluster, messages: Messages, **fields: Any) -> str:
    """A turn without a name; returns the conversation the router says it belongs to."""
    answer = await cluster.post("/v1/chat/completions", {"messages": messages, **fields})
    assert answer.status == 200
    return answer.headers["x-conversation-id"]


@pytest.mark.parametrize(
    "header",
    [
        "x-conversation-id",
        "x-claude-code-session-id",
        "x-session-affinity",
        "session-id",
        "x-smg-routing-key",
    ],
)
async def test_any_naming_header_names_a_conversation(cluster: Cluster, header: str) -> None:
    for _ in range(2):
        await cluster.post("/v1/chat/completions", {"messages": OPENING}, {header: "n"})
    assert len(cluster["p0"].turns) == 1


async def test_body_field_names_a_conversation_and_stays_here(cluster: Cluster) -> None:
    for _ in range(2):
        await chat(cluster, [*OPENING], conversation_id="näme\r\nx: y")
    assert len(cluster["p0"].turns) == 1
    assert "conversation_id" not in cluster["d0"].turns[0].body


@pytest.mark.parametrize(
    ("header", "field"),
    [("x-conversation-id", None), ("session-id", None), (None, "conversation_id"), (None, "user")],
)
async def test_name_over_256_bytes_is_a_400_that_says_so(
    header: str | None, field: str | None
) -> None:
    async with a_cluster(identify_by_user_field=True) as cluster:
        for num_bytes, status in ((250, 200), (257, 400)):
            body = {"messages": OPENING, **({field: "n" * num_bytes} if field else {})}
            headers = {header: "n" * num_bytes} if header else {}
            answer = await cluster.post("/v1/chat/completions", body, headers)
            assert answer.status == status
        assert answer.json()["error"]["code"] == "name_too_long"
        assert "256" in answer.json()["error"]["message"]
        assert len(cluster.service.brain.conversations) == 1


async def test_user_field_names_a_conversation_only_if_configured() -> None:
    for by_user, num_phase_ones in ((True, 1), (False, 2)):
        async with a_cluster(identify_by_user_field=by_user) as cluster:
            for _ in range(2):
                await chat(cluster, [*OPENING], user="u")
            assert len(cluster["p0"].turns) == num_phase_ones


@pytest.mark.parametrize("stream", [False, True])
async def test_unnamed_conversation_is_found_by_its_history(cluster: Cluster, stream: bool) -> None:
    messages: Messages = [*OPENING]
    names = set()
    for n in range(4):
        names.add(await chat(cluster, messages, stream=stream))
        messages = [*messages, ANSWER, {"role": "user", "content": f"go on {n}"}]
    assert len(names) == 1
    assert len(cluster["p0"].turns) == 1


async def test_two_clients_with_one_opening_stay_two_conversations(cluster: Cluster) -> None:
    first = await chat(cluster, [*OPENING])
    second = await chat(cluster, [*OPENING])
    assert first != second
    going_on = [*OPENING, ANSWER, {"role": "user", "content": "a"}]
    third = await chat(cluster, [*going_on])
    fourth = await chat(cluster, [*going_on])
    assert {third, fourth} == {first, second}
    assert len(cluster["p0"].turns) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_are_found_by_history(cluster: Cluster, stream: bool) -> None:
    prompt = "once upon a time " * 100
    names = set()
    for _ in range(3):
        body = {"prompt": prompt, "stream": stream}
        answer = await cluster.post("/v1/completions", body)
        names.add(answer.headers["x-conversation-id"])
        prompt += "the answer" + " and then"
    assert len(names) == 1


async def test_token_ids_are_found_by_history(cluster: Cluster) -> None:
    ids = list(range(1, 400))
    names = set()
    for _ in range(3):
        answer = await cluster.post("/generate", {"input_ids": ids})
        names.add(answer.headers["x-conversation-id"])
        ids += [*answer.json()["output_ids"], 7, 8, 9]
    assert len(names) == 1
    assert len(cluster["p0"].turns) == 1


async def test_failed_turn_leaves_the_history_where_it_was(cluster: Cluster) -> None:
    first = await chat(cluster, [*OPENING])
    going_on = [*OPENING, ANSWER, {"role": "user", "content": "a"}]
    cluster["d0"].faults.statuses.append(400)
    refused = await cluster.post("/v1/chat/completions", {"messages": going_on})
    assert refused.status == 400
    assert await chat(cluster, [*going_on]) == first


async def test_conversation_is_described_and_ended(cluster: Cluster) -> None:
    await cluster.chat("hello", name="my task")
    described = await cluster.request("GET", "/v1/conversations/my%20task")
    assert described.json()["decoder"] == "d0"
    assert described.json()["kv_transfers"] == 1
    key = described.json()["key"]
    ended = await cluster.request("DELETE", "/v1/conversations/my%20task")
    assert ended.json() == {"id": "my task", "object": "conversation", "deleted": True}
    await cluster.until(lambda: cluster["d0"].closed_sessions == [key])
    for method in ("GET", "DELETE"):
        gone = await cluster.request(method, f"/v1/conversations/{key}")
        assert gone.status == 404
    assert len(cluster.service.brain.conversations) == 0


async def test_end_header_ends_the_conversation_after_its_turn(cluster: Cluster) -> None:
    headers = {"x-conversation-id": "c", "x-conversation-end": "true"}
    answer = await cluster.post("/v1/chat/completions", {"messages": OPENING}, headers)
    assert answer.status == 200
    await cluster.until(lambda: len(cluster["d0"].closed_sessions) == 1)


async def test_idle_conversation_is_closed_on_its_decoder_and_forgotten() -> None:
    async with a_cluster(conversation_ttl_s=0.2) as cluster:
        await chat(cluster, [*OPENING])
        await cluster.until(lambda: len(cluster["d0"].closed_sessions) == 1)
        conversations = cluster.service.brain.conversations
        assert len(conversations) == len(conversations.history) == 0


async def test_the_routers_own_name_for_a_conversation_can_be_used(cluster: Cluster) -> None:
    name = await chat(cluster, [*OPENING])
    assert name.startswith("auto-")
    await cluster.chat("hello", "the answer", "more", name=name)
    assert len(cluster["p0"].turns) == 1


async def test_key_can_be_used_where_the_name_fits_no_header(cluster: Cluster) -> None:
    key = await chat(cluster, [*OPENING], conversation_id="näme\r\nx: y")
    assert key.startswith("conv-")
    await cluster.chat("hello", "the answer", "more", name=key)
    assert len(cluster["p0"].turns) == 1


async def test_routers_that_share_the_secret_derive_the_same_key() -> None:
    keys = set()
    for secret in (b"shared", b"shared", b"another"):
        async with a_cluster(secret=secret) as cluster:
            await cluster.chat("hello", name="task")
            keys.add(cluster["d0"].turns[0].body["session_id"])
    assert len(keys) == 2
