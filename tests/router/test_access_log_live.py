"""The router's own process: each line of its log is one event, whatever clients send."""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.router_cluster import Client
from tests.fakes.router_process import RouterProcess
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "marked-prompt"}], "max_tokens": 3}
LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) +[\w.]+: [ -~]+"
)
FORGED = "2026-01-01 00:00:00,000 INFO    conserve_sglang.access: forged"


@asynccontextmanager
async def a_router(folder: Path, *options: str, **router: Any) -> AsyncIterator[RouterProcess]:
    rendezvous = Rendezvous()
    workers = {"p0": FakeWorker("prefill", rendezvous), "d0": FakeWorker("decode", rendezvous)}
    async with workers["p0"].serve(), workers["d0"].serve():
        process = RouterProcess(folder, workers, **router)
        await process.start("--access-log", *options)
        try:
            yield process
        finally:
            await process.end()


async def sent(router: RouterProcess, data: bytes) -> None:
    """Bytes that may be no request; whatever is answered is taken."""
    client = Client(*await asyncio.open_connection("127.0.0.1", router.port))
    client.send(data)
    client.writer.write_eof()
    await asyncio.wait_for(client.reader.read(), 10)
    client.close()


def hostile(seed: int) -> list[bytes]:
    """Requests whose paths, ids and names try to end a line, to colour it, or to forge one."""
    chance = random.Random(seed)
    pieces = [
        b"\r\n", b"\n", b"\x1b[31m", b"%0a", b"\x85", b"\xe2\x80\xa8", b"\xe2\x80\xae", b'"', b"\\",
        b"\\n", b"\x00", b"\x7f", b" ", b"{}", b"=", b"\xff", b"x" * 300, FORGED.encode(),
    ]  # fmt: skip
    said = json.dumps(BODY).encode()
    requests = []
    for _ in range(60):
        path, request_id, name = (
            b"".join(chance.choices(pieces, k=chance.randrange(1, 5))) for _ in range(3)
        )
        requests += [
            b"GET /" + path + b" HTTP/1.1\r\nhost: x\r\n\r\n",
            b"POST %b HTTP/1.1\r\nhost: x\r\nx-request-id: %b\r\nx-conversation-id: %b\r\n"
            b"content-length: %d\r\n\r\n%b" % (CHAT.encode(), request_id, name, len(said), said),
            b"DELETE /v1/conversations/" + path + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        ]
    return requests


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_client_can_forge_or_break_a_line(tmp_path: Path, log_format: str) -> None:
    observe = {"log_conversation_names": True}
    options = ("--log-format", log_format, "--log-level", "debug")
    async with a_router(tmp_path, *options, observe=observe) as router:
        for request in hostile(1):
            await sent(router, request)
        assert (await router.chat("hello")).status == 200
    lines = router.log.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    num_turns = num_requests = 0
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 3000
        assert not line.startswith(FORGED)
        assert "marked-prompt" not in line
        if log_format == "json":
            event = json.loads(line)["event"]
        else:
            assert LINE.fullmatch(line), line
            event = "turn" if " turn_id=" in line else "request" if " method=" in line else ""
        num_turns += event == "turn"
        num_requests += event == "request"
    assert num_turns > 10
    assert num_requests > 60


async def test_one_request_is_followed_through_several_processes(tmp_path: Path) -> None:
    async with a_router(tmp_path, "--log-format", "json", processes=2) as router:
        headers = {"x-request-id": "follow-me", "x-conversation-id": "marked-name"}
        answer = await router.post(CHAT, BODY, headers)
        assert answer.headers["x-request-id"] == "follow-me"
        await router.post("/nothing", {}, {"x-request-id": "lost"})
        client = Client(*await asyncio.open_connection("127.0.0.1", router.control_port))
        keys = []
        for name in ("marked-name", "another"):
            client.send(f"GET /v1/conversations/{name} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            told = await client.answer()
            keys.append((told.status, told.json()["key"]))
        client.close()
        other = await router.chat("hello", name="another")
        assert other.status == 200
    lines = [json.loads(line) for line in router.log.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert [each for each in events if each.startswith("router_")] == [
        "router_listening",
        "router_stopping",
        "router_stopped",
    ]
    turn, later = (line for line in lines if line["event"] == "turn")
    assert (turn["request_id"], turn["status"], turn["tenant"]) == ("follow-me", 200, "default")
    assert keys == [(200, turn["conversation"]), (404, later["conversation"])]
    (lost,) = (line for line in lines if line["event"] == "request")
    assert (lost["request_id"], lost["code"], lost["path"]) == ("lost", "unknown_path", "/nothing")
    assert "marked-" not in router.log.read_text()


async def test_names_are_logged_where_the_operator_wants_them(tmp_path: Path) -> None:
    observe = {"log_conversation_names": True}
    async with a_router(tmp_path, "--log-format", "json", observe=observe) as router:
        await router.chat("hello", name="a name")
        await router.chat("hello", name="n" * 200)
    lines = [json.loads(line) for line in router.log.read_text().splitlines()]
    names = [line["name"] for line in lines if line["event"] == "turn"]
    assert names == ["a name", "n" * 80 + "..."]
