"""What replicas do in Redis with stored responses, each script on a real server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve_sglang.state.shared import Session, SharedStore
from tests.fakes.redis_server import a_redis_server

LIFE_MS = 161_000  # the store's 101 s and the grace


class Line:
    """One replica's session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def say(self, name: str, *arguments: str | bytes | int) -> Any:
        return (await self._session.exchange([(name, arguments)]))[0]

    async def keep(
        self,
        name: str,
        messages: bytes,
        previous: str = "",
        *,
        response: bytes = b"",
        most: int = 1000,
    ) -> Any:
        size, limits = len(response), (len(messages), most)
        said = (messages, previous, *limits, response, size, 1000)
        return await self.say("KEEP", "a", name, *said)

    async def object_of(self, name: str, tenant: str = "a") -> Any:
        return await self.say("OBJECT", tenant, name)

    async def chain(self, name: str, tenant: str = "a", limit: int = 10) -> Any:
        return await self.say("CHAIN", tenant, name, limit)


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with a_redis_server(tmp_path) as server:
        yield server.url


@pytest.fixture
async def line(url: str) -> AsyncIterator[Line]:
    store = SharedStore(url, "ns", 101.0)
    store.secret()
    session = await store.connect()
    yield Line(session)
    await session.close()


@pytest.fixture
async def server(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url) as server:
        yield server


async def test_history_is_found_from_its_end_in_parts(line: Line) -> None:
    await line.keep("r1", b"one")
    await line.keep("r2", b"three", "r1")
    await line.keep("r3", b"2", "r2")
    assert await line.chain("r3") == [b"found", b"", [b"r3", 1, b"r2", 5, b"r1", 3]]
    assert await line.chain("r3", limit=2) == [b"found", b"r1", [b"r3", 1, b"r2", 5]]
    assert await line.say("TEXTS", "a", "r1", "r3", "r4") == [b"one", b"2", b""]


async def test_another_tenants_response_is_missing(line: Line) -> None:
    await line.keep("r1", b"one")
    assert await line.chain("r1", "b") == [b"missing", b"r1", []]
    assert await line.say("TEXTS", "b", "r1") == [b""]
    assert await line.say("DELETE", "b", "r1", 0) == b"missing"
    assert await line.say("KNOWN", "b", "r1", "a", "r1") == [b"missing", b"kept"]


async def test_what_was_deleted_stays_so_and_breaks_what_follows(line: Line) -> None:
    await line.keep("r1", b"one")
    await line.keep("r2", b"two", "r1")
    assert await line.say("DELETE", "a", "r1", 0) == b"found"
    assert await line.say("DELETE", "a", "r1", 0) == b"deleted"
    assert await line.keep("r1", b"one") == 0
    assert await line.chain("r2") == [b"deleted", b"r1", [b"r2", 3]]
    assert await line.say("KNOWN", "a", "r1", "a", "r2") == [b"deleted", b"kept"]
    assert await line.say("DELETE", "a", "r9", 0) == b"missing"
    assert await line.keep("r9", b"late") == 1
    assert await line.say("DELETE", "a", "r8", 1) == b"found"
    assert await line.keep("r8", b"late") == 0


async def test_those_used_longest_ago_make_room(line: Line, server: Redis) -> None:
    for name in ("r1", "r2", "r3"):
        assert await line.keep(name, b"x" * 300) == 1
    await line.chain("r1")
    assert await line.keep("r4", b"x" * 300) == 1
    known = await line.say("KNOWN", *(w for n in range(1, 5) for w in ("a", f"r{n}")))
    assert known == [b"kept", b"missing", b"kept", b"kept"]
    assert int(await server.get("ns:responses_bytes") or 0) == 900
    await line.say("DELETE", "a", "r1", 0)
    assert int(await server.get("ns:responses_bytes") or 0) == 600
    assert await server.zcard("ns:responses") == 2


async def test_saying_it_again_changes_nothing(line: Line, server: Redis) -> None:
    for _ in range(2):
        assert await line.keep("r1", b"one") == 1
    assert int(await server.get("ns:responses_bytes") or 0) == 3


async def test_everything_expires_and_each_use_renews_a_history(line: Line, server: Redis) -> None:
    await line.keep("r1", b"one")
    await line.keep("r2", b"two", "r1")
    await line.keep("r3", b"two")
    await line.say("DELETE", "a", "r3", 0)
    keys = [key for key in await server.keys() if key != b"ns:secret"]
    assert len(keys) == 5
    for key in keys:
        assert LIFE_MS - 5000 < await server.pttl(key) <= LIFE_MS
        await server.pexpire(key, 1000)
    await line.chain("r2")
    lives_ms = {key: await server.pttl(key) for key in keys}
    assert {key for key, life in lives_ms.items() if life <= 1000} == {b"ns:r:a:r3"}


async def test_what_expired_counts_no_longer(line: Line, server: Redis) -> None:
    await line.keep("r1", b"x" * 300)
    await line.keep("r2", b"x" * 300)
    await server.delete("ns:r:a:r1")
    await server.zadd("ns:responses", {"300:a:r1": 1.0})  # its time is over
    await line.keep("r3", b"x" * 300)
    assert int(await server.get("ns:responses_bytes") or 0) == 600
    assert await line.say("KNOWN", "a", "r2", "a", "r3") == [b"kept", b"kept"]


async def test_object_is_its_own_tenants_and_goes_with_its_response(
    line: Line, server: Redis
) -> None:
    await line.keep("r1", b"one", response=b"whole")
    await line.keep("r2", b"two", "r1")
    assert await line.object_of("r1") == [b"found", b"whole"]
    assert await line.object_of("r2") == [b"found", b""]
    assert await line.object_of("r1", "b") == [b"missing", b""]
    assert await line.object_of("r9") == [b"missing", b""]
    assert await line.say("DELETE", "a", "r1", 0) == b"found"
    assert await line.object_of("r1") == [b"deleted", b""]
    assert int(await server.get("ns:objects_bytes") or 0) == 0
    assert not await server.exists("ns:o:a:r1", "ns:objects")


async def test_objects_have_room_of_their_own(line: Line, server: Redis) -> None:
    for name in ("r1", "r2", "r3"):
        await line.keep(name, b"x" * 100, response=b"y" * 400)
        if name == "r2":
            await line.object_of("r1")
    found = [(await line.object_of(name))[1][:1] for name in ("r1", "r2", "r3")]
    assert found == [b"y", b"", b"y"]
    assert int(await server.get("ns:objects_bytes") or 0) == 800
    assert (await line.chain("r2"))[0] == b"found"
    await line.keep("r4", b"x" * 900)  # r1 and r2 were used before r3
    assert int(await server.get("ns:responses_bytes") or 0) == 1000
    assert int(await server.get("ns:objects_bytes") or 0) == 400 * await server.zcard("ns:objects")


async def test_object_expires_unless_it_is_read(line: Line, server: Redis) -> None:
    await line.keep("r1", b"one", response=b"whole")
    keys = [key for key in await server.keys() if key != b"ns:secret"]
    assert len(keys) == 6
    for key in keys:
        assert LIFE_MS - 5000 < await server.pttl(key) <= LIFE_MS
        await server.pexpire(key, 1000)
    assert await line.object_of("r1") == [b"found", b"whole"]
    for key in keys:
        assert LIFE_MS - 5000 < await server.pttl(key) <= LIFE_MS


async def test_replicas_that_listen_are_asked_whether_they_have_written_all(
    url: str, line: Line
) -> None:
    other = await SharedStore(url, "other", 1.0).connect()
    store = SharedStore(url, "ns", 1.0)
    store.secret()
    session = await store.connect()
    names = await line.say("FLUSH", 7)
    assert {name.rpartition(b":")[2] for name in names} > {store.name.encode()}
    assert len(names) == 2
    async for words in session.messages():
        assert words[:2] == ["flush", "7"]
        await session.exchange([("FLUSHED", (words[2], "7"))])
        break
    await session.close()
    assert len(await line.say("FLUSH", 8)) == 1
    await other.close()
