"""What does placing one turn cost, and how does that grow with decoders and conversations?

Measures `Dispatcher.handle` alone, in this process: no I/O, no parsing. A turn is three events
(arrived, first token, done); each is timed. Not measured: anything the router does around it.

    python -m bench.placement_cost
"""

import argparse
import gc
import random
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from bench.harness import rss_bytes, save, spread
from conserve_sglang.core.ids import ConversationId, TierName, TurnId, WorkerId
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role, WorkerSpec
from conserve_sglang.dispatch import (
    Dispatcher,
    DispatchSettings,
    FirstToken,
    TurnArrived,
    TurnDone,
    WorkerUp,
)
from conserve_sglang.policy import make_policy

GRID = [(10, 1_000), (100, 1_000), (1_000, 1_000), (1_000, 100_000), (1_000, 1_000_000)]


class Fleet:
    """A dispatcher with decoders and live conversations at rest."""

    def __init__(self, num_decoders: int, num_conversations: int) -> None:
        self.rng = random.Random(7)
        policy = make_policy(PolicyChoice(name="conserve", params={}))
        self.dispatcher = Dispatcher(policy, DispatchSettings())
        self.now = 0.0
        self.turn = 0
        self.context = [0] * num_conversations
        self._add("p", Role.PREFILL, max(1, num_decoders // 3), 10**6)
        room = 3 * 20_000 * max(1, num_conversations // num_decoders)
        self._add("d", Role.DECODE, num_decoders, room)
        rss_before = rss_bytes()
        for number in range(num_conversations):
            self.play(number)
        self.bytes_per_conversation = (rss_bytes() - rss_before) / num_conversations

    def _add(self, prefix: str, role: Role, count: int, capacity: int) -> None:
        for number in range(count):
            spec = WorkerSpec(
                worker_id=WorkerId(f"{prefix}{number}"),
                role=role,
                tier=TierName(role.value),
                kv_capacity_tokens=capacity,
            )
            self.dispatcher.handle(WorkerUp(spec=spec), 0.0)

    def play(self, number: int) -> tuple[float, float, float]:
        """One turn of a conversation; seconds each of its three events took."""
        self.turn += 1
        self.now += 1e-4
        turn_id, context = TurnId(self.turn), self.context[number]
        prompt = context + (67 if context else self.rng.randint(12_000, 17_000))
        if prompt > 19_000:  # the agent starts over with a compacted context
            prompt = 15_000
        arrived = TurnArrived(
            turn_id=turn_id, conversation_id=ConversationId(f"c{number:07}"), input_tokens=prompt
        )
        first = FirstToken(turn_id=turn_id)
        done = TurnDone(
            turn_id=turn_id, prompt_tokens=prompt, output_tokens=120, cached_tokens=context
        )
        self.context[number] = prompt + 120
        clock, handle, now = time.perf_counter, self.dispatcher.handle, self.now
        t0 = clock()
        handle(arrived, now)
        t1 = clock()
        handle(first, now)
        t2 = clock()
        handle(done, now)
        return t1 - t0, t2 - t1, clock() - t2


def measure(num_decoders: int, num_conversations: int, num_turns: int) -> dict[str, Any]:
    """Cost of `num_turns` turns of random conversations of a fleet, in microseconds."""
    fleet = Fleet(num_decoders, num_conversations)
    gc.collect()
    gc.freeze()
    picks = [fleet.rng.randrange(num_conversations) for _ in range(num_turns)]
    samples = [fleet.play(number) for number in picks]
    gc.unfreeze()
    assert fleet.dispatcher.num_queued == 0, "the fleet is too small for its conversations"
    return {
        "num_decoders": num_decoders,
        "num_conversations": num_conversations,
        "arrived_us": spread([1e6 * s[0] for s in samples]),
        "first_token_us": spread([1e6 * s[1] for s in samples]),
        "done_us": spread([1e6 * s[2] for s in samples]),
        "turn_us": spread([1e6 * sum(s) for s in samples]),
        "bytes_per_conversation": round(fleet.bytes_per_conversation),
    }


def main() -> None:
    """Measure the grid, print it and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=100_000)
    parser.add_argument("--largest", type=int, default=1_000_000, help="most conversations")
    options = parser.parse_args()
    grid = [(d, c) for d, c in GRID if c <= options.largest]
    rows = []
    for num_decoders, num_conversations in grid:
        # A process each, so that a row's memory is its own.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            job = process.submit(measure, num_decoders, num_conversations, options.turns)
            rows.append(job.result())
    print("decoders  conversations  arrived us p50/p99   whole turn us p50/p99   bytes/conv")
    for row in rows:
        arrived, turn = row["arrived_us"], row["turn_us"]
        print(
            f"{row['num_decoders']:8,}  {row['num_conversations']:13,}"
            f"  {arrived['p50']:9.1f} {arrived['p99']:8.1f}"
            f"   {turn['p50']:12.1f} {turn['p99']:8.1f}   {row['bytes_per_conversation']:10,}"
        )
    print(save("placement_cost", {"num_turns": options.turns, "rows": rows}))


if __name__ == "__main__":
    main()
