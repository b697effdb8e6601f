"""Conversations held with the router, turn by turn, and what their clients saw."""

import asyncio
import difflib
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

ANSWER_LIMIT_S = 120.0
MAX_ASKS = 3
PAUSE_S = 0.1

Moment = Callable[["Seen", str], Awaitable[None]]
"""Told of each turn when it was `asked`, when `tokens` came, and when it was `answered`."""


async def nothing_happens(seen: "Seen", moment: str) -> None:
    """The undisturbed run."""


@dataclass(slots=True)
class Seen:
    """One turn as its client saw it. `asks` counts how often it had to be asked."""

    conversation: int
    turn: int
    text: str = ""
    asks: int = 0
    is_whole: bool = False
    error: str | None = None
    decoder: str | None = None
    reason: str | None = None
    heard_at_s: list[float] = field(default_factory=list)
    asked_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Script:
    """What clients say: the first words, then more, turn after turn."""

    num_conversations: int
    num_turns: int
    first_chars: int
    later_chars: int
    max_tokens: int

    def line(self, conversation: int, turn: int) -> str:
        """What a client says in a turn."""
        size = self.first_chars if turn == 1 else self.later_chars
        start = f"{conversation}.{turn}: "
        return start + ("go on " * (size // 6 + 1))[: max(0, size - len(start))]


async def play(
    port: int,
    model: str,
    script: Script,
    name: str,
    on_moment: Moment = nothing_happens,
    limit_s: float = ANSWER_LIMIT_S,
) -> list[Seen]:
    """Hold all conversations of a script at the same time; their turns as seen.

    A client gives up on an answer behind `limit_s`.
    """
    talks = (
        _Talk(port, model, script, number, f"{name}-{number}", on_moment, limit_s).converse()
        for number in range(script.num_conversations)
    )
    return [seen for talk in await asyncio.gather(*talks) for seen in talk]


@dataclass(slots=True)
class _Talk:
    """One client and its conversation."""

    port: int
    model: str
    script: Script
    number: int
    name: str
    on_moment: Moment
    limit_s: float

    async def converse(self) -> list[Seen]:
        """All turns, one after the other."""
        messages: list[dict[str, str]] = []
        turns: list[Seen] = []
        for turn in range(1, self.script.num_turns + 1):
            messages.append({"role": "user", "content": self.script.line(self.number, turn)})
            seen = Seen(self.number, turn)
            turns.append(seen)
            await self._ask_until_answered(messages, seen)
            await self.on_moment(seen, "answered")
            messages.append({"role": "assistant", "content": seen.text})
            await asyncio.sleep(PAUSE_S)
        return turns

    async def _ask_until_answered(self, messages: list[dict[str, str]], seen: Seen) -> None:
        """A client asks again only when its connection broke without a word."""
        body: dict[str, Any] = {"model": self.model, "messages": messages, "stream": True}
        body |= {"max_tokens": self.script.max_tokens, "temperature": 0, "ignore_eos": True}
        seen.asked_at_s = asyncio.get_running_loop().time()
        while seen.asks < MAX_ASKS and not seen.is_whole and seen.error is None:
            seen.asks += 1
            seen.text = ""
            try:
                await asyncio.wait_for(self._ask(body, seen), self.limit_s)
            except asyncio.TimeoutError:
                seen.error = f"no whole answer in {self.limit_s:g} s"
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(1.0)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, as soon as anyone listens: a router that starts is not asked yet."""
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
            except ConnectionRefusedError:
                await asyncio.sleep(0.2)

    async def _ask(self, body: dict[str, Any], seen: Seen) -> None:
        reader, writer = await self._connect()
        try:
            raw = json.dumps(body).encode()
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\nconnection: close\r\n"
                f"content-type: application/json\r\nx-conversation-id: {self.name}\r\n"
            )
            writer.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
            await self.on_moment(seen, "asked")
            status, headers = await _head(reader)
            seen.decoder = headers.get("x-conserve-decoder")
            seen.reason = headers.get("x-conserve-reason")
            if status != 200:
                rest = await reader.read()
                seen.error = f"{status}: {rest.decode(errors='replace')[:200]}"
                return
            await _read_events(reader, seen, self.on_moment)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def _read_events(reader: asyncio.StreamReader, seen: Seen, on_moment: Moment) -> None:
    loop = asyncio.get_running_loop()
    buffered = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        buffered += (await reader.readexactly(size + 2))[:-2]
        *events, buffered = buffered.split(b"\n\n")
        for event in events:
            if event == b"data: [DONE]":
                seen.is_whole = seen.error is None
            elif event:
                seen.heard_at_s.append(loop.time())
                _take(json.loads(event[6:]), seen)
        await on_moment(seen, "tokens")
    if not seen.is_whole and seen.error is None:
        raise asyncio.IncompleteReadError(buffered, None)


def _take(event: dict[str, Any], seen: Seen) -> None:
    if "error" in event:
        seen.error = str(event["error"].get("code"))
        return
    for choice in event["choices"]:
        seen.text += choice["delta"].get("content") or ""


def difference(expected: str, found: str, *, by_words: bool) -> tuple[int, int]:
    """How many tokens of an answer are missing, and how many it should not have."""
    if expected == found:
        return 0, 0
    split = (lambda text: text.split(" ")) if by_words else list
    missing = extra = 0
    matcher = difflib.SequenceMatcher(None, split(expected), split(found), autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        if what != "equal":
            missing += b - a
            extra += d - c
    return missing, extra
