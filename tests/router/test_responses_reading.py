"""Stored responses asked for by their id, with the official client."""

import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

import openai
import pytest

from conserve_sglang.core.tier import StateSettings
from conserve_sglang.state import SqliteStore
from tests.fakes.router_cluster import Cluster, a_cluster
from tests.router.test_responses import CALLS, WEATHER, client_of


async def create(client: openai.AsyncOpenAI, stream: bool, **asked: Any) -> Any:
    if not stream:
        return await client.responses.create(model="tiny", **asked)
    async with client.responses.stream(model="tiny", **asked) as events:
        return await events.get_final_response()


@pytest.mark.parametrize("stream", [False, True])
async def test_response_is_told_again_as_it_was_answered(cluster: Cluster, stream: bool) -> None:
    for worker in cluster.workers.values():
        worker.tool_calls = CALLS
        worker.reasoning = "hm"
    async with client_of(cluster) as client:
        answered = await create(
            client, stream, input="hello", instructions="be brief", tools=[WEATHER],
            metadata={"a": "b"}, temperature=0.5,
        )  # fmt: skip
        for _ in range(2):
            again = await client.responses.retrieve(answered.id)
            assert again.to_dict() == _plain(answered)
        assert again.output_text == "the answer"
        assert again.status == "completed"


def _plain(response: Any) -> Any:
    """Without what the client's stream helper adds."""
    fields = response.to_dict()
    for item in fields["output"]:
        item.pop("parsed_arguments", None)
        for part in item.get("content") or ():
            part.pop("parsed", None)
    return fields


async def test_whole_answer_and_head_have_the_same_bytes(cluster: Cluster) -> None:
    answer = await cluster.post("/v1/responses", {"model": "tiny", "input": "hello"})
    path = f"/v1/responses/{answer.json()['id']}"
    again = await cluster.request("GET", path)
    assert (again.status, again.body) == (200, answer.body)
    client = await cluster.connect()
    client.send(f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    status, headers = await client.head()
    assert (status, int(headers["content-length"])) == (200, len(answer.body))


async def test_answer_cut_by_its_limit_is_told_again(cluster: Cluster) -> None:
    for worker in cluster.workers.values():
        worker.finish_reason = "length"
    async with client_of(cluster) as client:
        first = await client.responses.create(model="tiny", input="hello")
        again = await client.responses.retrieve(first.id)
        assert (again.status, again.to_dict()) == ("incomplete", first.to_dict())


async def test_what_was_given_is_listed_with_what_came_before(cluster: Cluster) -> None:
    for worker in cluster.workers.values():
        worker.tool_calls = CALLS
    async with client_of(cluster) as client:
        first = await create(client, stream=False, input="hello", tools=[WEATHER])
        outputs: Any = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "sun"}
            for item in first.output
            if item.type == "function_call"
        ]
        asked: Any = {"input": outputs, "previous_response_id": first.id, "tools": [WEATHER]}
        second = await create(client, stream=True, **asked)
        only = await client.responses.input_items.list(first.id)
        assert [item.to_dict()["content"][0]["text"] for item in only.data] == ["hello"]  # type: ignore[index]
        listed = [
            item
            async for item in client.responses.input_items.list(second.id, order="asc", limit=2)
        ]
        kinds = ["message", "message", *["function_call"] * 2, *["function_call_output"] * 2]
        assert [item.type for item in listed] == kinds
        assert [item.id for item in listed[1:4]] == [item.id for item in first.output]
        assert listed[0].id == only.data[0].id
        newest = await client.responses.input_items.list(second.id, limit=1)
        assert newest.data[0].id == listed[-1].id
        assert newest.has_more
        after = await client.responses.input_items.list(second.id, after=listed[1].id)
        assert [item.id for item in after.data] == [listed[0].id]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.input_items.list(second.id, after=second.id)
        assert refused.value.param == "after"
        await client.responses.delete(first.id)
        for name in (first.id, second.id):
            with pytest.raises(openai.NotFoundError) as unknown:
                await client.responses.input_items.list(name)
            assert unknown.value.code == "response_not_found"
        assert (await client.responses.retrieve(second.id)).id == second.id


async def test_response_that_is_not_stored_is_not_told_again(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        first = await client.responses.create(model="tiny", input="hello", store=False)
        for act in (client.responses.retrieve, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError) as unknown:
                await act(first.id)
            assert unknown.value.code == "response_not_found"


async def test_without_room_for_objects_conversations_go_on_and_nothing_is_told_again() -> None:
    async with a_cluster(response_objects_mb=0) as cluster, client_of(cluster) as client:
        first = await client.responses.create(model="tiny", input="hello")
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        second = await client.responses.create(
            model="tiny", input="more", previous_response_id=first.id
        )
        assert len((await client.responses.input_items.list(second.id)).data) == 3


async def test_only_background_responses_could_be_cancelled_or_streamed_again(
    cluster: Cluster,
) -> None:
    async with client_of(cluster) as client:
        first = await client.responses.create(model="tiny", input="hello")
        for name in (first.id, "resp_unknown"):
            with pytest.raises(openai.BadRequestError, match="background"):
                await client.responses.cancel(name)
        with pytest.raises(openai.BadRequestError, match="background") as refused:
            await client.responses.retrieve(first.id, stream=True)
        assert refused.value.param == "stream"
        assert (await client.responses.retrieve(first.id, stream=False)).id == first.id


async def test_other_methods_and_paths_are_refused(cluster: Cluster) -> None:
    answer = await cluster.post("/v1/responses", {"model": "tiny", "input": "hello"})
    name = answer.json()["id"]
    for method, path, status, allow in (
        ("PUT", name, 405, "GET, HEAD, DELETE"),
        ("POST", name, 405, "GET, HEAD, DELETE"),
        ("DELETE", f"{name}/input_items", 405, "GET, HEAD"),
        ("GET", f"{name}/cancel", 405, "POST"),
        ("GET", f"{name}/other", 404, None),
        ("DELETE", f"{name}/other", 404, None),
        ("GET", f"{name}/input_items/1", 404, None),
        ("GET", f"{name}/input_items?limit=0", 400, None),
    ):
        refused = await cluster.request(method, f"/v1/responses/{path}")
        assert (refused.status, refused.headers.get("allow")) == (status, allow), path
        assert refused.json()["error"]["message"]
    assert (await cluster.request("GET", f"/v1/responses/{name}")).status == 200


async def test_any_id_that_was_not_given_is_the_same_404(cluster: Cluster) -> None:
    answer = await cluster.post("/v1/responses", {"model": "tiny", "input": "hello"})
    name = answer.json()["id"]
    rng = random.Random(2)
    pieces = ["resp_", name[5:20], "%00", "%ff", "%", "%2F", "..", "*", "'", "{", "0", quote("é")]
    names = {"".join(rng.choices(pieces, k=rng.randrange(1, 7))) for _ in range(300)}
    names |= {name[:-1], name + "0", name.upper(), "x" * 9000}
    told = set()
    for each in names - {""}:
        for part in ("", "/input_items"):
            refused = await cluster.request("GET", f"/v1/responses/{each}{part}")
            told.add((refused.status, refused.body))
    assert len(told) == 1
    ((status, body),) = told
    assert (status, json.loads(body)["error"]["code"]) == (404, "response_not_found")
    escaped = await cluster.request("GET", f"/v1/responses/%72{name[1:]}")
    assert escaped.status == 200


@pytest.mark.parametrize("keep_responses", [False, True])
async def test_responses_are_told_again_after_a_restart_if_they_are_kept(
    tmp_path: Path, keep_responses: bool
) -> None:
    path = tmp_path / "state"
    state: Any = {"state": StateSettings(keep_responses=keep_responses)}
    async with a_cluster(store=SqliteStore(path), **state) as cluster, client_of(cluster) as client:
        first = await client.responses.create(model="tiny", input="hello")
        second = await create(client, stream=True, input="x", previous_response_id=first.id)
        listed = (await client.responses.input_items.list(second.id)).to_dict()
    async with a_cluster(store=SqliteStore(path), **state) as cluster, client_of(cluster) as client:
        if not keep_responses:
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(first.id)
            return
        assert (await client.responses.retrieve(first.id)).to_dict() == first.to_dict()
        assert (await client.responses.retrieve(second.id)).to_dict() == _plain(second)
        assert (await client.responses.input_items.list(second.id)).to_dict() == listed
