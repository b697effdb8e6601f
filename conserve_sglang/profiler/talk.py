"""Asks one SGLang worker for tokens, and notes when they came."""

import asyncio
import json
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from conserve_sglang.core.errors import ConfigError, NotCapable, TimedOut, WorkerError
from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.core.worker import Role
from conserve_sglang.workers.bootstrap import rooms
from conserve_sglang.workers.fetch import fetch
from conserve_sglang.workers.pool import ConnectionPool
from conserve_sglang.workers.probe import WorkerFacts, read_facts
from conserve_sglang.workers.upstream import Headers

FAKE_PEER = "2.2.2.2"
"""SGLang's FAKE_BOOTSTRAP_HOST: a prefiller sends the KV of such a request nowhere."""

_TAKES_ALL = LocalLimits(max_uncached=999_999_999, min_cached=0).to_routing_key()
_TOKENS_SO_FAR = re.compile(rb'"completion_tokens": ?(\d+)')
_FIRST_TOKEN_ID, _MOST_TOKEN_IDS = 33, 30_000
TURN_TIMEOUT_S = 300.0
_MOST_EVENT_BYTES = 1 << 20


class Meta(msgspec.Struct):
    """What SGLang tells of a request. The stamps, seconds since the epoch, are its scheduler's and
    there only with --enable-metrics."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    forward_entry_time: float | None = None
    prefill_finished_time: float | None = None
    request_finished_ts: float | None = None


class _Answer(msgspec.Struct):
    meta_info: Meta
    output_ids: list[int] = []


_answer = msgspec.json.Decoder(_Answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer; times on this process's monotonic clock. `ticks` of a streamed one: when bytes
    came, and how many tokens there were by then."""

    sent_at_s: float
    done_at_s: float
    meta: Meta
    output_ids: Sequence[int] = ()
    ticks: tuple[tuple[float, int], ...] = ()

    @property
    def seconds(self) -> float:
        """From the request to the whole answer, as its client saw it."""
        return self.done_at_s - self.sent_at_s


class Talker:
    """One worker in its role. `num_token_ids` bounds the random prompts.

    `token_ids` are what they are made of; `bootstrap` is where a prefiller meets decoders. Raises
    `WorkerError` where it asks.
    """

    def __init__(
        self,
        url: str,
        role: Role,
        *,
        num_token_ids: int,
        rng: random.Random,
        bootstrap: tuple[str, int] | None = None,
    ) -> None:
        split = urlsplit(url)
        if split.scheme != "http" or not split.hostname:
            raise ConfigError(f"{url} is not the address of a worker, as http://127.0.0.1:30000")
        self.url = url
        self.role = role
        self.bootstrap = bootstrap
        self._rng = rng
        last = min(num_token_ids, _MOST_TOKEN_IDS) - 1
        self.token_ids = range(min(_FIRST_TOKEN_ID, last), last + 1)
        self._pool = ConnectionPool(split.hostname, split.port or 80, unacknowledged_s=60.0)
        self._rooms = rooms()

    def prompt(self, num_tokens: int) -> list[int]:
        """Random tokens that nobody has sent before."""
        return self._rng.choices(self.token_ids, k=num_tokens)

    async def generate(
        self, prompt: Sequence[int], num_tokens: int = 1, *, fields: Mapping[str, Any] | None = None
    ) -> Reply:
        """Ask for exactly `num_tokens`. `fields` replace what marks the role."""
        body = self._body(prompt, num_tokens, fields)
        sent_at_s = time.monotonic()
        status, answer = await fetch(
            self._pool, "POST", "/generate", body=body, timeout_s=TURN_TIMEOUT_S
        )
        told = _told(self.url, status, answer)
        return Reply(
            sent_at_s=sent_at_s,
            done_at_s=time.monotonic(),
            meta=told.meta_info,
            output_ids=told.output_ids,
        )

    async def stream(
        self, prompt: Sequence[int], num_tokens: int, *, fields: Mapping[str, Any] | None = None
    ) -> Reply:
        """The same, streamed: with a tick for what came."""
        marks = self._marks() if fields is None else fields
        body = self._body(prompt, num_tokens, {**marks, "stream": True})
        head = b"POST /generate HTTP/1.1\r\n" + self._pool.head_lines
        head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        ticking = _Ticking(asyncio.get_running_loop().create_future())
        sent_at_s = time.monotonic()
        exchange = self._pool.send([head + body], ticking)
        try:
            status = await asyncio.wait_for(ticking.whole, TURN_TIMEOUT_S)
        except asyncio.TimeoutError as error:
            raise TimedOut(f"{self.url}: no whole answer in {TURN_TIMEOUT_S:g} s") from error
        finally:
            if ticking.is_whole:
                exchange.close()
            else:
                exchange.abort()
        told = _told(self.url, status, ticking.last_event())
        return Reply(
            sent_at_s=sent_at_s,
            done_at_s=time.monotonic(),
            meta=told.meta_info,
            output_ids=told.output_ids,
            ticks=tuple(ticking.ticks),
        )

    async def flush(self) -> bool:
        """Empty its cache; False if it is busy."""
        status, _ = await fetch(self._pool, "POST", "/flush_cache", body=b"{}", timeout_s=30.0)
        return status == 200

    async def info(self) -> dict[str, Any]:
        """`GET /server_info` as it is."""
        status, body = await fetch(self._pool, "GET", "/server_info", timeout_s=30.0)
        if status != 200:
            raise NotCapable(f"{self.url}: GET /server_info answered {status}; is it SGLang?")
        told = json.loads(body)
        return told if isinstance(told, dict) else {}

    async def facts(self) -> WorkerFacts:
        """The same as far as the router reads it, the KV capacity among it."""
        return await read_facts(self._pool)

    def paired(self) -> dict[str, Any]:
        """The fields of one request to this prefiller and a decoder."""
        host, port = self.bootstrap or (FAKE_PEER, 8998)
        return {
            "bootstrap_host": host,
            "bootstrap_port": port,
            "bootstrap_room": next(self._rooms),
        }

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _marks(self) -> dict[str, Any]:
        """What lets this worker alone serve a request of its role."""
        if self.role is Role.PREFILL:
            return {**self.paired(), "bootstrap_host": FAKE_PEER}
        return {"routing_key": _TAKES_ALL} if self.role is Role.DECODE else {}

    def _body(
        self, prompt: Sequence[int], num_tokens: int, fields: Mapping[str, Any] | None
    ) -> bytes:
        sampling = {"max_new_tokens": num_tokens, "ignore_eos": True, "temperature": 0}
        marks = self._marks() if fields is None else fields
        return msgspec.json.encode({"input_ids": prompt, "sampling_params": sampling, **marks})


class _Ticking:
    """Notes when the events of a stream come."""

    def __init__(self, whole: "asyncio.Future[int]") -> None:
        self.whole = whole
        self.ticks: list[tuple[float, int]] = []
        self._status = 0
        self._tail = b""

    @property
    def is_whole(self) -> bool:
        """Whether all of the answer is here."""
        done = self.whole.done() and not self.whole.cancelled()
        return done and self.whole.exception() is None

    def last_event(self) -> bytes:
        """The last event of the stream, or an error's body."""
        if self._status != 200:
            return self._tail
        events = [line for line in self._tail.split(b"\n") if line.startswith(b"data: {")]
        return events[-1].removeprefix(b"data: ") if events else b"{}"

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status

    def on_body(self, data: bytes, is_last: bool) -> None:
        now = time.monotonic()
        so_far = _TOKENS_SO_FAR.findall(data)
        if so_far:
            self.ticks.append((now, int(so_far[-1])))
        # Enough for one event and the end mark behind it: an event repeats what was generated.
        self._tail = (self._tail + data)[-_MOST_EVENT_BYTES:]
        if is_last and not self.whole.done():
            self.whole.set_result(self._status)

    def on_broken(self, error: WorkerError) -> None:
        if not self.whole.done():
            self.whole.set_exception(error)


def _told(url: str, status: int, body: bytes) -> _Answer:
    if status == 200:
        try:
            return _answer.decode(body)
        except msgspec.MsgspecError as error:
            raise NotCapable(f"{url}: an answer to /generate without meta_info: {error}") from error
    said = body[:500].decode(errors="replace")
    raise NotCapable(f"{url} answered {status} to a measuring request: {said}")
