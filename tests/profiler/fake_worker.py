"""A worker that takes a known time for everything: what measuring must find.

It answers /generate, streamed or not, /server_info and /flush_cache as SGLang 0.5.23 does with
--enable-metrics, as far as the profiler looks. Its stamps are exact whatever else the machine does:
they are of a clock of its own, which only its costs move. `tests/sglang/test_profile.py` compares
it to the real one. Prefill runs one batch at a time; decode steps all requests together.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

VERSION = "0.5.23"


@dataclass
class Costs:
    """Seconds: of a prefill and of its tokens, new and cached; of a step and of its KV tokens; of
    a KV move; of a streamed request's way in; of two workers' meeting, and more of that at first;
    of a server's own first requests."""

    prefill_s: float = 0.004
    per_new_s: float = 10e-6
    per_cached_s: float = 1e-6
    step_s: float = 0.002
    per_kv_s: float = 0.1e-6
    transfer_s: float = 0.003
    per_moved_s: float = 2e-6
    answer_s: float = 0.002
    way_in_s: float = 0.0
    meeting_s: float = 0.0
    first_meeting_s: float = 0.0
    cold_s: float = 0.0

    def prefill(self, new: int, cached: int) -> float:
        return self.prefill_s + self.per_new_s * new + self.per_cached_s * cached

    def step(self, kv_tokens: int) -> float:
        return self.step_s + self.per_kv_s * kv_tokens

    def transfer(self, tokens: int) -> float:
        return self.transfer_s + self.per_moved_s * tokens


@dataclass
class Request:
    """One request inside the worker."""

    prompt: tuple[int, ...]
    num_tokens: int
    is_moved: bool = False
    events: "asyncio.Queue[dict[str, Any]]" = field(default_factory=asyncio.Queue)
    num_written: int = 0
    cached: int = 0
    entered_at: float = 0.0
    prefilled_at: float = 0.0


class FakeMeasuredWorker:
    """Use `serve()`. `has_stamps` False: as without --enable-metrics."""

    def __init__(self, mode: str = "null", costs: Costs | None = None) -> None:
        self.mode = mode
        self.costs = costs or Costs()
        self.has_stamps = True
        self.capacity_tokens = 65_536
        self.refuses_longer_than: int | None = None
        self.num_requests = 0
        self.is_busy = False
        self.num_flushes = 0
        self.port = 0
        self.steps: list[tuple[int, float]] = []  # requests of a step, seconds since the one before
        self._now = 1.8e9
        self._stepped_at: float | None = None
        self._cache: set[tuple[int, ...]] = set()
        self._has_met: set[int] = set()  # prefillers, by their bootstrap ports
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._woken = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["FakeMeasuredWorker"]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        loop = asyncio.create_task(self._scheduler())
        try:
            yield self
        finally:
            loop.cancel()
            server.close()
            for writer in tuple(self._writers):
                writer.transport.abort()
            await asyncio.gather(loop, return_exceptions=True)

    # the scheduler: prefill first, then steps of all that run

    async def _scheduler(self) -> None:
        while True:
            self.is_busy = bool(self._waiting or self._running)
            if self._waiting:
                batch, self._waiting = self._waiting[:16], self._waiting[16:]
                await self._prefill(batch)
            elif self._running:
                await self._step()
            else:
                self._stepped_at = None
                self._woken.clear()
                await self._woken.wait()

    async def _prefill(self, batch: list[Request]) -> None:
        self._stepped_at = None
        entered, seconds = self._now, 0.0
        for request in batch:
            request.cached = self._cached(request.prompt)
            seconds += self.costs.prefill(len(request.prompt) - request.cached, request.cached)
        await asyncio.sleep(seconds)
        self._now += seconds
        for request in batch:
            request.entered_at, request.prefilled_at = entered, self._now
            self._cache.add(request.prompt)
            self._write(request)
            if request.num_written < request.num_tokens:
                self._running.append(request)

    async def _step(self) -> None:
        seconds = self.costs.step(sum(len(r.prompt) + r.num_written for r in self._running))
        await asyncio.sleep(seconds)
        self._now += seconds
        now = time.perf_counter()
        if self._stepped_at is not None:
            self.steps.append((len(self._running), now - self._stepped_at))
        self._stepped_at = now
        for request in self._running:
            self._write(request)
        self._running = [r for r in self._running if r.num_written < r.num_tokens]

    def _write(self, request: Request) -> None:
        request.num_written += 1
        meta: dict[str, Any] = {
            "id": "x",
            "prompt_tokens": len(request.prompt),
            "completion_tokens": request.num_written,
            "cached_tokens": request.cached,
            "finish_reason": None,
        }
        if self.has_stamps:
            meta["forward_entry_time"] = request.entered_at
            meta["prefill_finished_time"] = request.prefilled_at
        request.events.put_nowait(meta)

    def _cached(self, prompt: tuple[int, ...]) -> int:
        """The longest prompt before that this one begins with; never all of it."""
        lengths = {len(known) for known in self._cache if len(known) <= len(prompt)}
        for length in sorted(lengths, reverse=True):
            if prompt[:length] in self._cache:
                return min(length, len(prompt) - 1)
        return 0

    # HTTP

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split(" ")[1]
                size = next(
                    (int(line.split(":")[1]) for line in head.lower().split("\r\n")
                     if line.startswith("content-length:")), 0,
                )  # fmt: skip
                body = await reader.readexactly(size)
                await self._answer(writer, path, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: bytes) -> None:
        if path == "/server_info":
            return _reply(writer, 200, self._info())
        if path == "/flush_cache":
            self.num_flushes += 1
            self._cache.clear()
            return _reply(writer, 200, {})
        asked = json.loads(body)
        prompt = tuple(asked["input_ids"])
        longest = self.refuses_longer_than
        if longest is not None and len(prompt) > longest:
            return _reply(writer, 400, {"error": {"message": "the prompt is too long"}})
        self.num_requests += 1
        request = Request(
            prompt=prompt,
            num_tokens=asked["sampling_params"]["max_new_tokens"],
            is_moved=asked.get("bootstrap_host") == "127.0.0.1",
        )
        way_in_s = self.costs.way_in_s if asked.get("stream") else 0.0
        await asyncio.sleep(way_in_s + (self.costs.cold_s if self.num_requests == 1 else 0.0))
        if self.mode == "decode" and request.is_moved:
            await self._meet(asked["bootstrap_port"])
            return await self._answer_moved(writer, request, is_stream="stream" in asked)
        self._waiting.append(request)
        self._woken.set()
        if asked.get("stream"):
            return await _stream(writer, request)
        meta = await _last_event(request)
        if request.is_moved:
            await asyncio.sleep(self.costs.transfer(len(prompt)))
            self._now += self.costs.transfer(len(prompt))
        if self.has_stamps:
            meta["request_finished_ts"] = self._now + self.costs.answer_s
        return _reply(writer, 200, {"text": "", "output_ids": [1], "meta_info": meta})

    async def _meet(self, bootstrap_port: int) -> None:
        if bootstrap_port not in self._has_met:
            self._has_met.add(bootstrap_port)
            await asyncio.sleep(self.costs.first_meeting_s)

    async def _answer_moved(
        self, writer: asyncio.StreamWriter, request: Request, *, is_stream: bool
    ) -> None:
        """A stream begins after as long as the prefiller takes, and the two take to meet."""
        if not is_stream:
            told = {"output_ids": [1], "meta_info": {"completion_tokens": 1}}
            _reply(writer, 200, told)
            return
        new = len(request.prompt)
        seconds = self.costs.prefill(new, 0) + self.costs.transfer(new) + self.costs.meeting_s
        await asyncio.sleep(seconds)
        for _ in range(request.num_tokens):
            self._write(request)
        await _stream(writer, request)

    def _info(self) -> dict[str, Any]:
        return {
            "disaggregation_mode": self.mode,
            "max_total_num_tokens": self.capacity_tokens,
            "served_model_name": "tiny",
            "chunked_prefill_size": 512,
            "context_length": 8192,
            "dtype": "float32",
            "attention_backend": "torch_native",
            "version": VERSION,
            "disaggregation_bootstrap_port": 8998,
            "internal_states": [{}],
        }


async def _last_event(request: Request) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    for _ in range(request.num_tokens):
        meta = await request.events.get()
    return {**meta, "finish_reason": {"type": "length"}}


async def _stream(writer: asyncio.StreamWriter, request: Request) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    for number in range(request.num_tokens):
        meta = await request.events.get()
        event = {"text": "", "output_ids": [1] * (number + 1), "meta_info": meta}
        _chunk(writer, b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")
    _chunk(writer, b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _reply(writer: asyncio.StreamWriter, status: int, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
