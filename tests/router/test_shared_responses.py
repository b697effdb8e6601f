"""Stored responses that replicas of the router share, with a real Redis and the official client."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.router.responses_store import Stored
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.replicas import Site, a_site, is_degraded
from tests.fakes.router_cluster import Cluster
from tests.fakes.router_process import RouterProcess, a_router_process

# Replicas and Redis have a second of real time to answer: a busy machine may take longer.
pytestmark = pytest.mark.flaky(reruns=2)

TENANT = DEFAULT_TENANT.tenant_id


def a_name(number: int) -> str:
    return f"resp_{number:032x}"


def client_of(router: Cluster | RouterProcess, api_key: str = "none") -> openai.AsyncOpenAI:
    port = router.service.port if isinstance(router, Cluster) else router.port
    return openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=api_key, max_retries=0
    )


@asynccontextmanager
async def two_replicas(
    folder: Path, **settings: Any
) -> AsyncIterator[tuple[Site, list[Cluster], list[openai.AsyncOpenAI]]]:
    async with a_site(folder, keep_responses=True) as site, AsyncExitStack() as stack:
        replicas = [await site.replica(**settings) for _ in range(2)]
        clients = [await stack.enter_async_context(client_of(each)) for each in replicas]
        yield site, replicas, clients


async def create(client: openai.AsyncOpenAI, said: str, previous: str | None = None) -> Any:
    return await client.responses.create(
        model="tiny", input=said, previous_response_id=previous or openai.omit
    )


async def stream(client: openai.AsyncOpenAI, said: str, previous: str | None = None) -> Any:
    previous_id: Any = previous or openai.omit
    async with client.responses.stream(
        model="tiny", input=said, previous_response_id=previous_id
    ) as events:
        return await events.get_final_response()


async def assert_unknown(client: openai.AsyncOpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as unknown:
        await create(client, "more", name)
    assert unknown.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.responses.delete(name)
    assert missing.value.code == "response_not_found"


@pytest.mark.parametrize("say", [create, stream])
async def test_each_follow_up_may_come_to_another_replica(tmp_path: Path, say: Any) -> None:
    async with two_replicas(tmp_path) as (site, _, clients):
        previous = None
        for number in range(8):
            previous = (await say(clients[number % 2], f"question {number}", previous)).id
        assert site.prefilled() == 1
        (decoder,) = (
            each for each in site.workers.values() if each.mode == "decode" and each.turns
        )
        contents = [message["content"] for message in decoder.turns[-1].body["messages"]]
        assert contents[::2] == [f"question {number}" for number in range(8)]
        assert set(contents[1::2]) == {"the answer"}


async def test_follow_up_that_is_faster_than_the_write_is_not_called_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_replicas(tmp_path) as (_, replicas, clients):
        for client in clients:
            await create(client, "connect")
        kept: Any = replicas[0].service.memory
        news, is_held = kept.desk.news, True
        monkeypatch.setattr(kept.desk, "news", lambda: [] if is_held else news())
        for act in (create, stream):
            is_held = True
            first = await act(clients[0], "hello")
            follow_up = asyncio.ensure_future(create(clients[1], "more", first.id))
            await asyncio.sleep(0.2)
            assert not follow_up.done()
            is_held = False
            kept.wake()
            assert (await follow_up).output_text == "the answer"
        is_held = True
        first = await create(clients[0], "hello")
        delete = asyncio.ensure_future(clients[1].responses.delete(first.id))
        await asyncio.sleep(0.2)
        is_held = False
        kept.wake()
        await delete
        await assert_unknown(clients[0], first.id)


async def test_replica_that_says_nothing_delays_the_unknown_and_not_what_another_writes(
    tmp_path: Path,
) -> None:
    async with two_replicas(tmp_path) as (site, replicas, clients):
        third: Any = (await site.replica()).service.memory
        third.hear = lambda words: None
        for client in clients:
            await create(client, "connect")
        one: Any = replicas[0].service.memory
        one.desk.news, news = (list), one.desk.news
        first = await create(clients[0], "hello")
        loop = asyncio.get_running_loop()
        began = loop.time()
        follow_up = asyncio.ensure_future(create(clients[1], "more", first.id))
        await asyncio.sleep(0.2)
        one.desk.news = news
        one.wake()
        assert (await follow_up).output_text == "the answer"
        assert loop.time() - began < 0.8
        with pytest.raises(openai.BadRequestError):
            await create(clients[1], "more", "resp_" + "0" * 32)


@pytest.mark.parametrize("say", [create, stream])
async def test_any_replica_tells_a_response_again_and_what_it_was_given(
    tmp_path: Path, say: Any
) -> None:
    async with two_replicas(tmp_path) as (site, replicas, clients):
        first = await say(clients[0], "hello")
        told = await clients[1].responses.retrieve(first.id)
        assert (told.id, told.output_text) == (first.id, "the answer")
        assert told.to_dict() == (await clients[0].responses.retrieve(first.id)).to_dict()
        second = await say(clients[1], "more", first.id)
        listed = [await each.responses.input_items.list(second.id) for each in clients]
        assert listed[0].to_dict() == listed[1].to_dict()
        assert len(listed[0].data) == 3
        await clients[1].responses.delete(first.id)
        for act in (clients[0].responses.retrieve, clients[0].responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                await act(first.id)
        await site.redis.kill()
        await replicas[0].until(lambda: all(map(is_degraded, replicas)))
        assert (await clients[1].responses.retrieve(second.id)).id == second.id
        with pytest.raises(openai.InternalServerError) as refused:
            await clients[0].responses.retrieve(second.id)
        assert refused.value.code == "responses_unavailable"


async def test_many_conversations_hop_between_replicas_at_once(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (site, _, clients):

        async def converse(number: int) -> None:
            previous = None
            for turn in range(4):
                response = await create(clients[(number + turn) % 2], f"{number} {turn}", previous)
                previous = response.id

        await asyncio.gather(*map(converse, range(40)))
        assert site.prefilled() == 40


async def test_what_one_replica_deletes_is_unknown_at_all_at_once(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (site, replicas, clients):
        first = await create(clients[0], "hello")
        second = await create(clients[1], "more", first.id)
        await clients[1].responses.delete(first.id)
        for client in clients:
            await assert_unknown(client, first.id)
            with pytest.raises(openai.BadRequestError):
                await create(client, "x", second.id)
        await clients[0].responses.delete(second.id)
        for each in replicas:
            await each.until(lambda each=each: not len(each.service.brain.responses))  # type: ignore[misc]
        assert not [key for key in await site.redis.keys() if await site.redis.text_of(key)]


async def test_other_tenants_response_is_as_unknown_at_another_replica(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    keys = {name: new_key(file, name) for name in ("a", "b")}
    auth = AuthSettings(keys_file=str(file))
    async with two_replicas(tmp_path, auth=auth) as (_, replicas, _), AsyncExitStack() as stack:
        own, other = [
            [await stack.enter_async_context(client_of(each, key)) for each in replicas]
            for key in keys.values()
        ]
        response = await create(own[0], "hello")
        for stranger in other:
            told = []
            for name in (response.id, "resp_" + "0" * 32, "unknown"):
                with pytest.raises(openai.BadRequestError) as refused:
                    await create(stranger, "x", name)
                acts = stranger.responses
                messages = [refused.value.message.replace(name, "")]
                for act in (acts.delete, acts.retrieve, acts.input_items.list):
                    with pytest.raises(openai.NotFoundError) as missing:
                        await act(name)
                    messages.append(missing.value.message)
                told.append(messages)
            assert told[0] == told[1] == told[2]
        assert (await create(own[1], "more", response.id)).output_text == "the answer"


async def test_without_redis_a_replica_knows_its_own_and_says_so_of_others(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (site, replicas, clients):
        first = await create(clients[0], "hello")
        await create(clients[1], "elsewhere")
        await site.redis.kill()
        await replicas[0].until(lambda: all(map(is_degraded, replicas)))
        second = await create(clients[0], "more", first.id)
        for act in (create(clients[1], "x", first.id), clients[0].responses.delete(first.id)):
            with pytest.raises(openai.InternalServerError) as refused:
                await act
            assert (refused.value.status_code, refused.value.code) == (
                503,
                "responses_unavailable",
            )
            assert refused.value.response.headers["retry-after"] == "1"
        await site.redis.start()  # it remembers nothing
        await replicas[0].until(lambda: not any(map(is_degraded, replicas)))
        third = await create(clients[1], "and more", second.id)
        assert (await create(clients[0], "the last", third.id)).output_text == "the answer"


async def test_what_was_deleted_is_not_brought_back_by_a_replica_that_missed_it(
    tmp_path: Path,
) -> None:
    async with two_replicas(tmp_path) as (_, replicas, clients):
        first = await create(clients[0], "hello")
        await create(clients[1], "more", first.id)
        kept: Any = replicas[0].service.memory
        kept.hear = lambda words: None
        await clients[1].responses.delete(first.id)
        assert len(replicas[0].service.brain.responses) == 1
        del kept.hear
        kept.met()  # as after a break in its connection
        kept.wake()
        await replicas[0].until(lambda: not len(replicas[0].service.brain.responses))
        await assert_unknown(clients[0], first.id)


async def test_frozen_redis_delays_a_follow_up_for_a_second_at_most(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (site, _, clients):
        first = await create(clients[0], "hello")
        second = await create(clients[1], "more", first.id)
        site.redis.send(signal.SIGSTOP)
        try:
            answers = await asyncio.wait_for(
                asyncio.gather(
                    create(clients[0], "x", second.id),
                    create(clients[1], "x", second.id),
                    return_exceptions=True,
                ),
                4.0,
            )
        finally:
            site.redis.send(signal.SIGCONT)
        assert isinstance(answers[0], openai.InternalServerError)
        told: Any = answers[1]
        assert told.output_text == "the answer"


async def test_room_in_redis_is_bounded_and_everything_there_expires(tmp_path: Path) -> None:
    async with two_replicas(tmp_path, stored_responses_mb=1, conversation_ttl_s=100.0) as (
        site, replicas, clients,
    ):  # fmt: skip
        for number in range(12):
            stored = Stored(b"x" * 150_000, None)
            replicas[number % 2].service.brain.keep_response(TENANT, a_name(number), stored)
            while f"test:r:default:{a_name(number)}".encode() not in await site.redis.keys():
                await asyncio.sleep(0.005)
        with pytest.raises(openai.NotFoundError):
            await clients[0].responses.delete(a_name(0))
        await clients[1].responses.delete(a_name(10))
        lives_ms = {key: await site.redis.life_ms(key) for key in await site.redis.keys()}
        sizes = [await site.redis.text_of(key) for key in lives_ms]
        assert [size for size in sizes if size] == [150_000] * 5
        assert (
            len(replicas[1].service.brain.responses) == 6
        )  # its own; of the rest it was not asked
        lasting = {b"test:secret", b"test:replicas"}
        assert {key for key, life in lives_ms.items() if not 0 < life <= 160_000} <= lasting


async def test_history_read_from_redis_is_bounded_as_a_request_is(tmp_path: Path) -> None:
    async with two_replicas(tmp_path, max_body_bytes=3000) as (_, _, clients):
        first = await create(clients[0], "x" * 2000)
        second = await create(clients[0], "x" * 2000, first.id)
        with pytest.raises(openai.APIStatusError) as refused:
            await create(clients[1], "x", second.id)
        assert (refused.value.status_code, refused.value.code) == (413, "history_too_long")


async def test_a_replica_without_the_option_keeps_to_itself(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(client_of(await site.replica())) for _ in range(2)
        ]
        first = await create(clients[0], "hello")
        await assert_unknown(clients[1], first.id)
        assert (await create(clients[0], "more", first.id)).output_text == "the answer"
        assert not [key for key in await site.redis.keys() if b":r:" in key]


async def test_long_histories_of_many_responses_are_read_in_parts(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (_, replicas, clients):
        brain = replicas[0].service.brain
        previous = None
        for number in range(700):
            said = b'{"role":"user","content":"%d"},{"role":"assistant","content":"yes"}' % number
            brain.keep_response(TENANT, a_name(number), Stored(said, previous))
            previous = a_name(number)
        response = await create(clients[1], "more", previous)
        assert response.usage.input_tokens > 700 * 4
        assert len(replicas[1].service.brain.responses) == 701


async def test_several_processes_share_with_several_and_outlive_the_one_that_stored(
    tmp_path: Path,
) -> None:
    async with a_site(tmp_path) as site, AsyncExitStack() as stack:
        state = {"redis": site.redis.url, "namespace": "many", "keep_responses": True}
        settings: dict[str, Any] = {"state": state, "processes": 2}
        one, two = [
            await stack.enter_async_context(
                a_router_process(tmp_path, site.workers, name, **settings)
            )
            for name in ("one", "two")
        ]
        clients = [await stack.enter_async_context(client_of(each)) for each in (one, two)]

        async def converse(number: int) -> str:
            previous: str | None = None
            for turn in range(4):
                response = await create(clients[(number + turn) % 2], f"{number} {turn}", previous)
                previous = response.id
            assert previous is not None
            return previous

        last = await asyncio.gather(*map(converse, range(12)))
        assert site.prefilled() == 12
        await clients[1].responses.delete(last[0])
        for client in clients:
            await assert_unknown(client, last[0])
        await asyncio.sleep(0.1)
        await one.end(signal.SIGKILL)
        for previous in last[1:]:
            assert (await create(clients[1], "after", previous)).output_text == "the answer"


async def test_full_redis_loses_nothing_and_no_log_tells_what_was_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_replicas(tmp_path) as (site, replicas, clients):
        await create(clients[1], "before")
        await site.redis.bound_memory(1)
        first = await create(clients[0], "a marked prompt")
        await replicas[0].until(lambda: is_degraded(replicas[0]))
        second = await create(clients[0], "another marked prompt", first.id)
        health = (await replicas[0].request("GET", "/health")).body.decode()
        assert "maxmemory" in health
        for text in (health, caplog.text):
            assert "marked" not in text
            assert "EVALSHA" not in text  # no call is quoted
            assert first.id not in text
        await site.redis.bound_memory(0)
        await replicas[0].until(lambda: not any(map(is_degraded, replicas)))
        assert (await create(clients[1], "more", second.id)).output_text == "the answer"
