"""Replicas of a router over a Redis that asks for a password, which is told to nobody else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.fakes.redis_server import RedisServer, a_redis_server
from tests.fakes.router_process import RouterProcess, a_router_process
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

PASSWORD = "marked pass/word:@"
Workers = dict[str, FakeWorker]


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with a_redis_server(tmp_path, PASSWORD) as server:
        yield server


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    rendezvous = Rendezvous()
    workers = {
        name: FakeWorker(mode, rendezvous) for name, mode in (("p", "prefill"), ("d", "decode"))
    }
    async with AsyncExitStack() as stack:
        for worker in workers.values():
            await stack.enter_async_context(worker.serve())
        yield workers


def state(redis: RedisServer, user: str = "") -> dict[str, str]:
    url = redis.url.replace("redis://", f"redis://{user}@" if user else "redis://")
    return {"redis": url, "redis_password_env": "REDIS_PASSWORD"}


async def refused(folder: Path, workers: Workers, state: dict[str, str]) -> str:
    """What a router says that does not start."""
    router = RouterProcess(folder, workers, "refused", state=state)
    with pytest.raises(AssertionError):
        await router.start("--log-level", "debug")
    assert await router.ended() == 2
    return router.log.read_text()


async def test_replicas_share_conversations_and_tell_the_password_nobody(
    tmp_path: Path, redis: RedisServer, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                a_router_process(tmp_path, workers, name, state=state(redis))
            )
            for name in ("one", "other")
        ]
        assert (await one.chat("hello")).status == 200
        await asyncio.sleep(0.3)  # what became of a turn is written behind its answer
        assert (await other.chat("hello", "hi", "more")).status == 200
        assert len(workers["p"].turns) == 1
        health = (await other.get("/health")).body.decode()
        assert [await each.end() for each in (one, other)] == [0, 0]
    assert "marked" not in health + one.log.read_text() + other.log.read_text()


async def test_a_user_stands_in_the_url(
    tmp_path: Path, redis: RedisServer, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = ("~fleet:*", "&fleet:*", "+@all", "-@admin", "-@dangerous")  # as tier_maps/README.md
    async with Redis.from_url(redis.url, password=PASSWORD) as server:
        await server.execute_command(  # type: ignore[no-untyped-call]
            "ACL", "SETUSER", "app", "on", ">of the app", *rules
        )
    monkeypatch.setenv("REDIS_PASSWORD", "of the app")
    named = {**state(redis, "app"), "namespace": "fleet", "keep_responses": True}
    async with (
        a_router_process(tmp_path, workers, "one", state=named) as one,
        a_router_process(tmp_path, workers, "other", state=named) as other,
    ):
        body = {"model": "tiny", "input": "hello"}
        first = (await one.post("/v1/responses", body)).json()
        second = await other.post("/v1/responses", body | {"previous_response_id": first["id"]})
        assert second.status == 200
        assert (await one.get("/v1/conversations/no")).status == 404
        assert (await one.get("/health")).json()["status"] == "ok"
        logs = one.log.read_text() + other.log.read_text()
    assert "ERROR" not in logs.upper()
    monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)  # not that user's
    said = await refused(tmp_path, workers, state(redis, "app"))
    assert "Redis does not let this router in" in said
    assert ".." not in said, "Redis ends its own sentences"
    assert "marked" not in said


@pytest.mark.parametrize("password", [None, "", "marked, but another"])
async def test_without_the_password_a_router_says_so_and_does_not_start(
    tmp_path: Path, redis: RedisServer, workers: Workers, monkeypatch: pytest.MonkeyPatch,
    password: str | None,
) -> None:  # fmt: skip
    named = state(redis)
    if password is None:
        del named["redis_password_env"]
    else:
        monkeypatch.setenv("REDIS_PASSWORD", password)
    said = await refused(tmp_path, workers, named)
    expected = (
        "router.state.redis_password_env: the environment variable REDIS_PASSWORD is not set"
        if password == ""
        else "router.state.redis: Redis does not let this router in"
    )
    assert expected in said
    assert "Traceback" not in said
    assert "marked" not in said
