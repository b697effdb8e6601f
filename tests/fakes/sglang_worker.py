"""A fake SGLang worker on a real socket: prefill, decode or mixed, streaming or not.

It answers as SGLang 0.5.23 with the plugin does, as far as a router can tell: pairs by bootstrap
room, checks the mark of a local turn against what it holds of the session, refuses in the same
shapes, counts tokens (one a byte). `tests/sglang/test_fake_contract.py` compares it to the real
server. Faults are switched on by its attributes.
"""

import asyncio
import json
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from conserve_sglang.core.continuation import TELL_HEADER
from conserve_sglang.core.local_turn import LocalLimits
from tests.fakes.continuing import as_sent
from tests.fakes.faults import Faults
from tests.fakes.prefixes import Prefixes, Salt, common, salt_of
from tests.fakes.prompt import BadPrompt, prompt_of
from tests.fakes.refusing import QUEUE_IS_FULL, as_event, status_of
from tests.fakes.saying import STREAM_HEAD, Saying, num_choices

TURN_PATHS = ("/v1/chat/completions", "/v1/completions", "/generate")


class Room(asyncio.Event):
    """Set once the prefiller is there."""

    cached = 0  # tokens the prefiller says it had


class Rendezvous:
    """Where prefillers and decoders of one test meet, by room."""

    def __init__(self) -> None:
        self._rooms: dict[int, Room] = {}
        self.rooms_used: list[int] = []

    def room(self, number: int) -> Room:
        return self._rooms.setdefault(number, Room())


@dataclass
class Seen:
    """One request as the worker saw it."""

    path: str
    headers: dict[str, str]
    raw: bytes
    body: dict[str, Any]
    was_aborted: bool = False


class FakeWorker(Saying):
    """One worker; use `serve()`."""

    def __init__(
        self,
        mode: str,
        rendezvous: Rendezvous,
        *,
        has_plugin: bool = True,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.api_key = api_key
        self.tls = tls
        self.has_plugin = has_plugin
        self.rendezvous = rendezvous
        self.port = 0
        self.bootstrap_port = 0
        self.capacity_tokens = 100_000
        self.served_name = "tiny"
        self.incarnation = ""
        self.error_text = "told to fail"
        self.kv_gb: float | None = None
        self.load = {"num_running_reqs": 2, "num_waiting_reqs": 1, "num_used_tokens": 70}
        self.faults = Faults()
        self.seen: list[Seen] = []
        self.probes: list[str] = []
        self.closed_sessions: list[str] = []
        self.num_flushes = 0
        self.health_status = 200
        self.resident: dict[str, str] = {}
        self.prefixes = Prefixes()
        self._salts: dict[str, Salt] = {}  # of what is resident
        self.num_connections = 0
        self.num_written = 0
        self._awake = asyncio.Event()
        self._awake.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator["FakeWorker"]:
        await self.start(port)
        try:
            yield self
        finally:
            await self.stop()

    async def start(self, port: int = 0) -> None:
        self.incarnation = uuid.uuid4().hex
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.bootstrap_port = self.port  # only ever passed along

    async def stop(self) -> None:
        """Go at once, as a killed process does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    def freeze(self) -> None:
        """As SIGSTOP does: connections are accepted, and nothing is read or written on them."""
        self._awake.clear()

    def thaw(self) -> None:
        """As SIGCONT does: what was read and written meanwhile is dealt with now."""
        self._awake.set()

    @property
    def turns(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.path in TURN_PATHS]

    # HTTP

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.num_connections += 1
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        await self._awake.wait()
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines if line)
        }
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        wanted = f"Bearer {self.api_key}"
        if self.api_key and path != "/ready" and headers.get("authorization") != wanted:
            await self._reply(writer, 401, b'{"error":"Unauthorized"}')
            return True
        if method == "GET":
            self.probes.append(path)
            await asyncio.sleep(self.faults.probe_delay_s)
            await self._reply(writer, *self._about(path))
            return True
        seen = Seen(path, headers, raw, json.loads(raw))
        self.seen.append(seen)
        if path in TURN_PATHS:
            return await self._turn_unless_gone(reader, writer, seen)
        await self._reply(writer, *self._asked(seen))
        return True

    def _asked(self, seen: Seen) -> tuple[int, bytes]:
        """What is asked of it beside turns."""
        if seen.path == "/close_session":
            self.closed_sessions.append(seen.body["session_id"])
            self.resident.pop(seen.body["session_id"], None)
            return 200, b""
        if seen.path == "/flush_cache":
            self.num_flushes += 1
            is_busy = self.faults.num_busy_flushes >= self.num_flushes
            if not is_busy:
                self.resident.clear()
                self.prefixes.clear()
            return 400 if is_busy else 200, b""
        if seen.path == "/v1/tokenize":
            tokens = list(prompt_of(seen.body).encode())
            told = {"tokens": tokens, "count": len(tokens), "max_model_len": 4096}
            return 200, json.dumps(told).encode()
        return 404, b'{"detail":"Not Found"}'

    async def _turn_unless_gone(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Seen
    ) -> bool:
        """Serve a turn, but stop when the router closes the connection meanwhile."""
        turn = asyncio.ensure_future(self._turn(writer, seen))
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({turn, gone}, return_when=asyncio.FIRST_COMPLETED)
        if turn.done():
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            return turn.result()
        seen.was_aborted = True
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)
        return False

    def _about(self, path: str) -> tuple[int, bytes]:
        if path == "/ready":
            return 200, b""
        if path == "/health":
            return self.health_status, b""
        if path == "/v1/loads?include=core":
            return 200, json.dumps({"loads": [self.load]}).encode()
        if path != "/server_info":
            return 404, b'{"detail":"Not Found"}'
        state: dict[str, Any] = {"last_gen_throughput": 1.0}
        if self.has_plugin and self.mode == "prefill":
            state["conserve"] = {"local_prefill": False, "continues": True}
        if self.has_plugin and self.mode == "decode":
            state["conserve"] = {"local_prefill": True, "incarnation": self.incarnation}
            state["conserve"]["continues"] = True
            state["conserve"]["resident_tokens"] = sum(map(len, self.resident.values()))
        if self.kv_gb is not None:
            state["memory_usage"] = {"kvcache": self.kv_gb, "token_capacity": self.capacity_tokens}
        info = {
            "disaggregation_mode": self.mode,
            "max_total_num_tokens": self.capacity_tokens,
            "served_model_name": self.served_name,
            "internal_states": [state],
            "version": "0.5.23",
        }
        return 200, json.dumps(info).encode()

    async def _reply(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
        await self._write(writer, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        step = self.faults.split_bytes or len(data)
        for start in range(0, len(data), step or 1):
            await self._awake.wait()
            writer.write(data[start : start + step])
            self.num_written += min(step, len(data) - start)
            await writer.drain()
            if self.faults.split_bytes:
                await asyncio.sleep(0.001)

    # turns

    async def _turn(self, writer: asyncio.StreamWriter, seen: Seen) -> bool:
        faults, body = self.faults, seen.body
        if faults.num_cuts_before_head:
            faults.num_cuts_before_head -= 1
            return False
        if faults.statuses:
            await self._error(writer, faults.statuses.pop(0), self.error_text)
            return True
        await asyncio.sleep(faults.delay_s)
        try:
            prompt = prompt_of(body)
            several = num_choices(body) > 1
        except BadPrompt as error:
            await self._error(writer, 400, str(error))
            return True
        cached = self._cached(body, prompt)
        if self.mode != "prefill" and "bootstrap_room" not in body:
            refusal = self._refusal(seen, prompt, cached)
            if refusal is not None:
                await self._refuse(writer, seen, refusal)
                return True
        if "bootstrap_room" in body:
            if several:  # and so does SGLang: one room for all, and for a warm-up before them
                await asyncio.Event().wait()
            room = self.rendezvous.room(body["bootstrap_room"])
            if self.mode == "prefill":
                assert not room.is_set(), "a room was used twice"
                self.rendezvous.rooms_used.append(body["bootstrap_room"])
                room.cached = cached
                room.set()
            else:
                await room.wait()
                cached = max(cached, room.cached)
        if body.get("session_id"):
            self.resident[body["session_id"]] = prompt + self.said(body)
            self._salts[body["session_id"]] = salt_of(body)
        self.prefixes.add(body, prompt + self.said(body) * (self.mode != "prefill"))
        return await self._answer(writer, seen, len(prompt), cached)

    def _cached(self, body: dict[str, Any], prompt: str) -> int:
        """Tokens that are there; a local turn goes by what is held for its session."""
        if self.mode != "decode" or "bootstrap_room" in body:
            return self.prefixes.cached(body, prompt)
        session = body.get("session_id", "")
        is_its_own = self._salts.get(session) == salt_of(body)
        return common(self.resident.get(session, ""), prompt) if is_its_own else 0

    def _refusal(self, seen: Seen, prompt: str, cached: int) -> str | None:
        full = QUEUE_IS_FULL if self.faults.queue_is_full else None
        if self.mode == "null":
            return full
        if self.faults.refusals:
            reason = self.faults.refusals.pop(0)
            return f"conserve-refused reason={reason} cached=0 uncached={len(prompt)}"
        key = seen.headers.get("x-smg-routing-key") or seen.body.get("routing_key")
        limits = LocalLimits.from_routing_key(key)
        if limits is None:
            return "Disaggregated request received without bootstrap room id"
        refusal = limits.refusal(prompt_tokens=len(prompt), cached_tokens=cached)
        return full if refusal is None else refusal.to_message()

    async def _refuse(self, writer: asyncio.StreamWriter, seen: Seen, message: str) -> None:
        if not seen.body.get("stream"):
            await self._error(writer, status_of(message), message)
            return
        tells = TELL_HEADER in seen.headers and seen.path != "/generate"
        await self._stream(writer, [as_event(seen.path, message, tells=tells)])

    async def _error(self, writer: asyncio.StreamWriter, status: int, message: str) -> None:
        body = {"object": "error", "message": message, "type": "x", "param": None, "code": status}
        await self._reply(writer, status, json.dumps(body).encode())

    async def _answer(
        self, writer: asyncio.StreamWriter, seen: Seen, num_prompt: int, cached: int
    ) -> bool:
        usage = self.usage(seen.body, num_prompt, cached)
        if seen.body.get("stream"):
            if self.faults.num_cuts_after_head:
                self.faults.num_cuts_after_head -= 1
                await self._write(writer, STREAM_HEAD)
                return False
            return await self._stream(writer, self._events(seen, usage))
        answer = self.whole(seen.path, seen.body, usage)
        await self._reply(writer, 200, json.dumps(answer, separators=(",", ":")).encode())
        return not self.faults.closes_after_answer

    def _events(self, seen: Seen, usage: dict[str, Any]) -> list[str]:
        events, pieces = self.events(seen.path, seen.body, usage)
        is_plain = not (self.reasoning or self.tool_calls) and self.has_plugin
        headers = seen.headers if is_plain and self.mode == "decode" else {}
        return as_sent(events, pieces, seen.body, headers)

    async def _stream(self, writer: asyncio.StreamWriter, events: list[str]) -> bool:
        await self._write(writer, STREAM_HEAD)
        for number, event in enumerate([*events, "data: [DONE]\n\n"]):
            if self.faults.cut_after_events == number:
                return False
            if number:
                await asyncio.sleep(self.faults.event_delay_s)
            data = event.encode()
            await self._write(writer, b"%x\r\n%b\r\n" % (len(data), data))
        await asyncio.sleep(self.faults.last_chunk_delay_s)
        await self._write(writer, b"0\r\n\r\n")
        return not self.faults.closes_after_answer
