"""A fake SGLang worker as a process of its own, so that it can be killed, frozen and slowed.

    python -m bench.faults.worker --mode decode --port 30110 --meet-port 30111 ...

It is the tests' fake worker with two additions: its answer is a function of the whole prompt, as
greedy decoding is, so that a context with a gap gives another answer; and decoders wait for
prefillers over a socket, so that a prefiller's death before, during and after a transfer differ.
"""

import argparse
import asyncio
import contextvars
import hashlib
import signal
from dataclasses import dataclass
from typing import Any

from tests.fakes.prompt import prompt_of
from tests.fakes.sglang_worker import FakeWorker, Rendezvous, Seen

FILL_QUEUE = "/fill_queue"  # of the fake alone: whether its queue is full from now on
_answer: contextvars.ContextVar[str] = contextvars.ContextVar("answer", default="")


def answer_to(prompt: str, num_words: int) -> str:
    """The answer to a prompt: words that differ from each other and between prompts."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()
    return " ".join(f"{digest}.{number}" for number in range(num_words))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a worker takes for what, in seconds."""

    prefill_s: float
    transfer_s: float
    local_prefill_s: float
    token_s: float
    num_words: int


class SeededWorker(FakeWorker):
    """One worker at its pace; `meet_port` is where decoders meet a prefiller."""

    def __init__(self, mode: str, pace: Pace, meet_port: int) -> None:
        super().__init__(mode, Rendezvous())
        self._pace = pace
        self._meet_port = meet_port
        self.faults.event_delay_s = pace.token_s

    @property
    def answer(self) -> str:
        """The answer to the turn whose task asks."""
        return _answer.get()

    @answer.setter
    def answer(self, value: str) -> None:
        _answer.set(value)

    async def meet(self) -> None:
        """Let decoders wait for their transfers."""
        if self.mode == "prefill":
            await asyncio.start_server(self._hand_over, "127.0.0.1", self._meet_port)

    async def _hand_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            room = int(await reader.readline())
            await self.rendezvous.room(room).wait()
            await asyncio.sleep(self._pace.transfer_s)
            writer.write(b"done\n")
            await writer.drain()
        except (ValueError, ConnectionError):
            pass
        finally:
            writer.close()

    def _asked(self, seen: Seen) -> tuple[int, bytes]:
        if seen.path == FILL_QUEUE:
            self.faults.queue_is_full = bool(seen.body["is_full"])
            return 200, b""
        return super()._asked(seen)

    async def _turn(self, writer: asyncio.StreamWriter, seen: Seen) -> bool:
        body, pace = seen.body, self._pace
        _answer.set(answer_to(prompt_of(body), pace.num_words))
        room = body.get("bootstrap_room")
        if self.mode == "prefill":
            await asyncio.sleep(pace.prefill_s)
        elif room is None:
            await asyncio.sleep(pace.local_prefill_s)
        elif await _transferred(body):
            self.rendezvous.room(room).set()
        else:
            await self._error(writer, 500, "KVTransferError: the prefiller is gone")
            return True
        return await super()._turn(writer, seen)


async def _transferred(body: dict[str, Any]) -> bool:
    """Wait for a prefiller's KV; False if it goes away meanwhile."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", body["bootstrap_port"])
        writer.write(b"%d\n" % body["bootstrap_room"])
        line = await reader.readline()
        writer.close()
    except OSError:
        return False
    return line == b"done\n"


async def _run(arguments: argparse.Namespace) -> None:
    pace = Pace(
        prefill_s=arguments.prefill_s,
        transfer_s=arguments.transfer_s,
        local_prefill_s=arguments.local_prefill_s,
        token_s=arguments.token_s,
        num_words=arguments.num_words,
    )
    worker = SeededWorker(arguments.mode, pace, arguments.meet_port)
    worker.capacity_tokens = arguments.capacity
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await worker.meet()
    async with worker.serve(arguments.port):
        await stopped.wait()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("prefill", "decode"), required=True)
    for name in ("port", "meet-port", "capacity", "num-words"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("prefill-s", "transfer-s", "local-prefill-s", "token-s"):
        parser.add_argument(f"--{name}", type=float, required=True)
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
