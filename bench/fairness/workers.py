"""Fake SGLang workers that take their time: prompts are prefilled one after the other.

A prefiller takes what the simulator's A40 takes for a prompt's length, first come, first served,
then the KV moves. A decoder's tokens come at a constant pace, whatever else it decodes: the first
by itself, the rest in one piece when the last is due. All times are divided by `speed`.
"""

import asyncio
import json
from asyncio import StreamWriter
from typing import Any

from conserve_sglang.sim import A40_QWEN3_0_6B
from tests.fakes.saying import STREAM_HEAD
from tests.fakes.sglang_worker import FakeWorker, Rendezvous, Seen

PERF = A40_QWEN3_0_6B
BATCH_TOKENS = 40_000  # the KV a step reads: what sets the pace of tokens
STEP_S = PERF.decode_step_s + BATCH_TOKENS * PERF.decode_s_per_kv_token


class TimedWorker(FakeWorker):
    """A worker of prompts of token ids, asked through `/generate`."""

    def __init__(self, mode: str, rendezvous: Rendezvous, capacity: int, speed: float) -> None:
        super().__init__(mode, rendezvous)
        self.capacity_tokens = capacity
        self._speed = speed
        self._free_at_s = 0.0

    async def _turn(self, writer: StreamWriter, seen: Seen) -> bool:
        body, self.seen = seen.body, []
        seen.raw = b""
        num_tokens = len(body["input_ids"])
        num_output = body["sampling_params"]["max_new_tokens"]
        room: Any = body.get("bootstrap_room")
        if self.mode == "prefill":
            await self._prefill(num_tokens)
            self.rendezvous.room(room).set()
            await self._write(writer, STREAM_HEAD)
            await self._event(writer, num_tokens, 1)
            await self._end(writer)
            return True
        if room is None:
            await self._pass_s(PERF.append_floor(num_tokens))
        else:
            await self.rendezvous.room(room).wait()
        await self._pass_s(STEP_S)
        await self._write(writer, STREAM_HEAD)
        await self._event(writer, num_tokens, 1)
        await self._pass_s(STEP_S * (num_output - 1))
        await self._event(writer, num_tokens, num_output)
        await self._end(writer)
        return True

    async def _prefill(self, num_tokens: int) -> None:
        loop = asyncio.get_running_loop()
        took_s = PERF.whole_prefill(num_tokens) / self._speed
        self._free_at_s = max(self._free_at_s, loop.time()) + took_s
        await asyncio.sleep(self._free_at_s - loop.time())
        await self._pass_s(PERF.transfer_s(num_tokens))

    async def _pass_s(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._speed)

    async def _event(self, writer: StreamWriter, num_prompt: int, num_output: int) -> None:
        event: dict[str, Any] = {
            "text": "x" * num_output,
            "output_ids": [],
            "meta_info": {
                "id": "x",
                "finish_reason": {"type": "length"},
                "prompt_tokens": num_prompt,
                "completion_tokens": num_output,
                "cached_tokens": 0,
            },
        }
        data = b"data: " + json.dumps(event).encode() + b"\n\n"
        await self._write(writer, b"%x\r\n%b\r\n" % (len(data), data))

    async def _end(self, writer: StreamWriter) -> None:
        await self._write(writer, b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
