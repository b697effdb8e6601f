"""`previous_response_id` where clients are served by several processes."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.router.ports import Question, Subject, Told
from conserve_sglang.router.processes import talk
from conserve_sglang.router.processes.hub import FrontSeat
from conserve_sglang.router.tuning import is_compiled
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.patching import WHY
from tests.fakes.router_cluster import Cluster, a_cluster
from tests.fakes.router_family import Family, a_family


@dataclass
class Watched:
    """A family, which front asked the brain what, and the responses it was told of."""

    family: Family
    asked: list[tuple[int, Subject]]
    kept: list[str]

    async def clients(self, stack: AsyncExitStack, **options: Any) -> list[openai.AsyncOpenAI]:
        """Two official clients, each with one connection, the first to one front and the second to
        the other."""
        by_front: dict[int, openai.AsyncOpenAI] = {}
        for _ in range(64):
            client = await stack.enter_async_context(client_of(self.family, **options))
            with pytest.raises(openai.NotFoundError):
                await client.responses.delete("resp_unknown")
            by_front.setdefault(self.asked[-1][0], client)
            if len(by_front) == 2:
                return list(by_front.values())
        raise AssertionError("every connection came to the same front")


def client_of(cluster: Cluster, api_key: str = "none") -> openai.AsyncOpenAI:
    url = f"http://127.0.0.1:{cluster.service.port}/v1"
    return openai.AsyncOpenAI(base_url=url, api_key=api_key, max_retries=0)


@asynccontextmanager
async def a_watched_family(**settings: Any) -> AsyncIterator[Watched]:
    if is_compiled():
        pytest.skip(WHY)
    async with a_family(**settings) as family:
        watched = Watched(family, [], [])
        hub = family.many.hub
        ask, keep = hub.ask, hub.brain.keep_response

        def watch_asked(asker: FrontSeat, question: Question, hear: Callable[[Told], None]) -> None:
            watched.asked.append((asker.number, question.subject))
            ask(asker, question, hear)

        def watch_kept(tenant: Any, response_id: str, stored: Any) -> None:
            watched.kept.append(response_id)
            keep(tenant, response_id, stored)

        hub.ask, hub.brain.keep_response = watch_asked, watch_kept  # type: ignore[method-assign]
        yield watched


async def create(client: openai.AsyncOpenAI, stream: bool, **asked: Any) -> Any:
    if not stream:
        return await client.responses.create(model="tiny", **asked)
    async with client.responses.stream(model="tiny", **asked) as events:
        return await events.get_final_response()


@pytest.mark.parametrize("num_processes", [1, 2])
async def test_conversation_goes_on_from_a_response_and_ends_with_it(num_processes: int) -> None:
    async with AsyncExitStack() as stack:
        is_one = num_processes == 1
        cluster = await stack.enter_async_context(a_cluster() if is_one else a_family())
        client = await stack.enter_async_context(client_of(cluster))
        first = await create(client, stream=False, input="hello")
        second = await create(client, stream=True, input="more", previous_response_id=first.id)
        assert second.output_text == "the answer"
        assert len(cluster["p0"].turns) == 1
        await client.responses.delete(first.id)
        for previous in (first.id, second.id, "resp_unknown"):
            with pytest.raises(openai.BadRequestError) as unknown:
                await create(client, stream=False, input="x", previous_response_id=previous)
            assert unknown.value.code == "previous_response_not_found"


@pytest.mark.parametrize("stream", [False, True])
async def test_follow_up_at_the_other_process_goes_on_with_the_conversation(stream: bool) -> None:
    async with a_watched_family() as watched, AsyncExitStack() as stack:
        family = watched.family
        one, other = await watched.clients(stack)
        fronts = {number for number, _ in watched.asked}
        watched.asked.clear()
        previous: Any = None
        for number in range(6):
            client = (one, other)[number % 2]
            said = f"question {number}"
            response = await create(client, stream, input=said, previous_response_id=previous)
            previous = response.id
        histories = [number for number, subject in watched.asked if subject is Subject.HISTORY]
        assert len(histories) == 5
        assert set(histories) == fronts
        assert len(family["p0"].turns) == 1
        (decoder,) = (family[name] for name in ("d0", "d1") if family[name].turns)
        contents = [message["content"] for message in decoder.turns[-1].body["messages"]]
        assert contents[::2] == [f"question {number}" for number in range(6)]
        assert set(contents[1::2]) == {"the answer"}
        await one.responses.delete(previous)
        with pytest.raises(openai.BadRequestError) as unknown:
            await create(other, stream, input="more", previous_response_id=previous)
        assert unknown.value.code == "previous_response_not_found"


async def test_either_process_tells_a_response_again_and_what_it_was_given() -> None:
    async with a_watched_family() as watched, AsyncExitStack() as stack:
        clients = await watched.clients(stack)
        for number in range(4):
            here, there = clients[number % 2], clients[1 - number % 2]
            first = await create(here, stream=False, input="hello")
            assert (await there.responses.retrieve(first.id)).to_dict() == first.to_dict()
            second = await create(here, stream=True, input="x", previous_response_id=first.id)
            listed = await there.responses.input_items.list(second.id)
            assert [item.type for item in listed.data] == ["message"] * 3
        await here.responses.delete(first.id)
        for act in (there.responses.retrieve, there.responses.input_items.list):
            with pytest.raises(openai.NotFoundError) as unknown:
                await act(first.id)
            assert unknown.value.code == "response_not_found"


async def test_request_that_neither_stores_nor_goes_on_tells_the_brain_nothing_more() -> None:
    async with a_watched_family() as watched, client_of(watched.family) as client:
        await client.responses.create(model="tiny", input="hello", store=False)
        await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}]
        )
        assert (watched.asked, watched.kept) == ([], [])
        response = await client.responses.create(model="tiny", input="hello")
        assert (watched.asked, watched.kept) == ([], [response.id])


async def test_other_tenants_response_is_as_unknown_as_one_that_never_was(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    keys = {name: new_key(file, name) for name in ("a", "b")}
    auth = AuthSettings(keys_file=str(file))
    async with a_watched_family(auth=auth) as watched, AsyncExitStack() as stack:
        clients = [
            client for key in keys.values() for client in await watched.clients(stack, api_key=key)
        ]
        response = await create(clients[0], stream=False, input="hello")
        for stranger in clients[2:]:
            told = []
            for name in (response.id, "resp_" + "0" * 32):
                with pytest.raises(openai.BadRequestError) as refused:
                    await create(stranger, stream=False, input="x", previous_response_id=name)
                acts = stranger.responses
                messages = [refused.value.message.replace(name, "")]
                for act in (acts.delete, acts.retrieve, acts.input_items.list):
                    with pytest.raises(openai.NotFoundError) as missing:
                        await act(name)
                    messages.append(missing.value.message)
                told.append(messages)
            assert told[0] == told[1]
        again = await create(
            clients[1], stream=False, input="more", previous_response_id=response.id
        )
        assert again.output_text == "the answer"
        assert (await clients[1].responses.retrieve(response.id)).id == response.id


async def test_responses_outlive_the_front_that_served_them() -> None:
    async with a_watched_family() as watched, client_of(watched.family) as client:
        first = await create(client, stream=False, input="hello")
        family = watched.family.many.family
        hub = watched.family.many.hub
        ended = hub.seats()
        for seat in ended:
            seat.say(talk.Stop())
        await watched.family.until(lambda: not set(ended) & set(hub.seats()), 20)
        await watched.family.until(
            lambda: len(hub.seats()) == 2 and all(seat.is_ready.is_set() for seat in hub.seats()),
            20,
        )
        assert len(family.pids()) == 2
        second = await create(client, stream=False, input="more", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        assert (await client.responses.retrieve(first.id)).to_dict() == first.to_dict()
