"""Conversations that come at random, and what became of each of their turns."""

import asyncio
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bench.faults.worker import answer_to

ANSWER_LIMIT_S = 60.0
MEAN_TURNS = 5.0
NEVER_NAMED, LEAVES = 0.2, 0.03  # share of conversations, of streamed turns
CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Tally:
    """What clients saw, by outcome; everything but the first three is a loss."""

    outcomes: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    most_at_once: int = 0

    GOOD = ("answered", "left", "told why not")

    @property
    def num_turns(self) -> int:
        """Turns asked."""
        return self.outcomes.total()

    @property
    def num_lost(self) -> int:
        """Turns neither answered rightly nor told why not."""
        return sum(count for name, count in self.outcomes.items() if name not in self.GOOD)

    def note(self, outcome: str, why: str = "") -> None:
        """Count a turn."""
        self.outcomes[outcome] += 1
        if outcome not in {"answered", "left"} and len(self.examples) < 20:
            self.examples.append(f"{outcome}: {why}"[:300])


class Crowd:
    """Clients, one for each conversation, of a router at `port`.

    `gap_s` is the mean pause between a conversation's turns.
    """

    def __init__(self, port: int, num_words: int, gap_s: float, seed: int) -> None:
        self.tally = Tally()
        self._port = port
        self._num_words = num_words
        self._gap_s = gap_s
        self._random = Random(seed)
        self._number = 0
        self._num_asked = 0

    async def come(self, rate: float, seconds: float) -> None:
        """Begin conversations at `rate` a second for so long; wait until all are over."""
        loop = asyncio.get_running_loop()
        due_s, end_s = loop.time(), loop.time() + seconds
        talks: set[asyncio.Task[None]] = set()
        while due_s < end_s:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            self._number += 1
            talk = loop.create_task(self._converse(self._number, Random(self._random.random())))
            talks.add(talk)
            talk.add_done_callback(talks.discard)
            due_s += self._random.expovariate(rate)
        await asyncio.gather(*talks)

    async def _converse(self, number: int, dice: Random) -> None:
        messages: list[dict[str, str]] = []
        name = None if dice.random() < NEVER_NAMED else f"soak-{number}"
        num_turns = 1 + int(dice.expovariate(1 / MEAN_TURNS))
        for turn in range(1, num_turns + 1):
            size = dice.randint(200, 800) if turn == 1 else dice.randint(20, 120)
            messages.append({"role": "user", "content": f"{number}.{turn} ".ljust(size, "x")})
            headers = {} if name is None else {"x-conversation-id": name}
            if turn == num_turns and dice.random() < 0.5:
                headers["x-conversation-end"] = "1"
            is_stream = dice.random() < 0.5
            leaves_at = dice.randint(1, 5) if is_stream and dice.random() < LEAVES else None
            text = await self._turn(messages, headers, is_stream, leaves_at)
            if text is None:
                return
            messages.append({"role": "assistant", "content": text})
            await asyncio.sleep(dice.expovariate(1 / self._gap_s))

    async def _turn(
        self,
        messages: list[dict[str, str]],
        headers: dict[str, str],
        is_stream: bool,
        leaves_at: int | None,
    ) -> str | None:
        """Ask one turn; its text if the conversation can go on."""
        expected = answer_to("".join(said["content"] for said in messages), self._num_words)
        body = {"model": "tiny", "messages": messages, "stream": is_stream}
        self._num_asked += 1
        self.tally.most_at_once = max(self.tally.most_at_once, self._num_asked)
        try:
            asked = self._ask(body, headers, leaves_at)
            outcome, said = await asyncio.wait_for(asked, ANSWER_LIMIT_S)
        except asyncio.TimeoutError:
            outcome, said = "no answer in time", ""
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome, said = "cut off", repr(error)
        finally:
            self._num_asked -= 1
        if outcome == "answered" and said != expected:
            outcome, said = "answered wrongly", f"{said!r}, not {expected!r}"
        self.tally.note(outcome, said)
        return said if outcome == "answered" else None

    async def _ask(
        self, body: dict[str, Any], headers: dict[str, str], leaves_at: int | None
    ) -> tuple[str, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        try:
            raw = json.dumps(body).encode()
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"POST {CHAT} HTTP/1.1\r\nhost: router\r\nconnection: close\r\n{lines}"
            writer.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if answer.split(" ", 2)[1] != "200":
                return "told why not", answer.split("\r\n")[0] + (await reader.read()).decode()
            if body["stream"]:
                return await _read_stream(reader, leaves_at)
            told = json.loads(await reader.read())
            return "answered", told["choices"][0]["message"]["content"]
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _read_stream(reader: asyncio.StreamReader, leaves_at: int | None) -> tuple[str, str]:
    text, buffered, num_events = "", b"", 0
    while size := int(await reader.readuntil(b"\r\n"), 16):
        buffered += (await reader.readexactly(size + 2))[:-2]
        *events, buffered = buffered.split(b"\n\n")
        for event in filter(None, events):
            num_events += 1
            if event == b"data: [DONE]":
                return "answered", text
            told = json.loads(event[6:])
            if "error" in told:
                return "told why not", str(told["error"])
            text += "".join(each["delta"].get("content") or "" for each in told["choices"])
        if leaves_at is not None and num_events >= leaves_at:
            return "left", ""
    return "cut off", f"the stream ended after {text[-40:]!r}"
