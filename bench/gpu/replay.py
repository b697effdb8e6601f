"""What do TTFET, TBT and joules come to when conversations are played through a router?

    python -m bench.gpu.replay --url http://127.0.0.1:30000 --policy conserve --out FILE

Conversations shaped like the paper's (mini-swe-agent), as random token ids to `/generate`, each
turn with all that came before; arrivals are Poisson. Energy is that of the whole GPU over the run.
Not measured: the client is on the same machine, and takes some of its CPU.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.harness import spread
from conserve_sglang.core.errors import MeterError, WorkerError
from conserve_sglang.core.worker import Role
from conserve_sglang.energy.choose import open_meter
from conserve_sglang.energy.meter import Kind
from conserve_sglang.profiler.power import PowerTrack
from conserve_sglang.profiler.talk import Talker
from conserve_sglang.workload import (
    ConversationPlan,
    mini_swe_conversations,
    poisson_arrivals,
    scaled_to_window,
    with_arrivals,
)

IDLE_S = 5.0


@dataclass(slots=True, kw_only=True)
class Played:
    """One conversation as its client saw it, in seconds of one monotonic clock."""

    arrived_at_s: float
    first_tokens_s: list[float] = field(default_factory=list)
    ttfts_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    last_turn_gaps_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ended_at_s: float = 0.0
    failure: str | None = None


def workload(count: int, rate_per_s: float, window: int, seed: int) -> tuple[Any, str]:
    """The conversations, the same for every policy, and what was done to fit them."""
    rng = random.Random(seed)
    plans = with_arrivals(mini_swe_conversations(count, rng), poisson_arrivals(rate_per_s, rng))
    scaling = scaled_to_window(plans, window, fitting=0.95)
    return scaling.conversations, scaling.statement()


async def play(
    talker: Talker, plans: Sequence[ConversationPlan], *, run: str, seed: int
) -> tuple[list[Played], float, float]:
    """Play all to their end; when it began and ended. Conversations are named after the `run`, so
    that no router knows them from another one; their tokens are those of the seed."""
    began_s = time.monotonic()
    tasks = []
    for number, plan in enumerate(plans):
        rng, name = random.Random(f"{seed} {number}"), f"{run}-{plan.conversation_id}"
        tasks.append(asyncio.create_task(_converse(talker, plan, name, began_s, rng)))
    played = await asyncio.gather(*tasks)
    return list(played), began_s, time.monotonic()


async def _converse(
    talker: Talker, plan: ConversationPlan, name: str, began_s: float, rng: random.Random
) -> Played:
    await asyncio.sleep(max(0.0, began_s + plan.arrived_at_s - time.monotonic()))
    played = Played(arrived_at_s=time.monotonic())
    context: list[int] = []
    try:
        for number, turn in enumerate(plan.turns):
            if turn.gap_s:
                await asyncio.sleep(turn.gap_s)
            prompt = context[: turn.shared_tokens]
            prompt += rng.choices(talker.token_ids, k=turn.input_tokens - len(prompt))
            reply = await talker.stream(
                prompt, turn.output_tokens, fields={"conversation_id": name}
            )
            _note(played, reply.sent_at_s, reply.ticks, is_last=number == len(plan.turns) - 1)
            played.prompt_tokens += reply.meta.prompt_tokens
            played.cached_tokens += reply.meta.cached_tokens
            played.output_tokens += reply.meta.completion_tokens
            context = [*prompt, *reply.output_ids]
    except WorkerError as error:
        played.failure = str(error)[:300]
    played.ended_at_s = time.monotonic()
    return played


def _note(
    played: Played, sent_at_s: float, ticks: Sequence[tuple[float, int]], *, is_last: bool
) -> None:
    if not ticks:
        raise WorkerError("an answer without a token")
    played.first_tokens_s.append(ticks[0][0])
    played.ttfts_s.append(ticks[0][0] - sent_at_s)
    num_gaps = ticks[-1][1] - ticks[0][1]
    if num_gaps > 0:
        gap_s = (ticks[-1][0] - ticks[0][0]) / num_gaps
        played.gaps_s.append(gap_s)
        if is_last:
            played.last_turn_gaps_s.append(gap_s)


def summary(played: Sequence[Played]) -> dict[str, Any]:
    """Latencies by GLOSSARY.md: TTFET from turn 1's arrival to the last turn's first token, the
    last turn's TBT one value a conversation, TPOT one a turn."""
    good = [one for one in played if one.failure is None]
    failures = sorted({one.failure for one in played if one.failure is not None})
    found: dict[str, Any] = {
        "num_conversations": len(played),
        "num_answered": len(good),
        "failures": failures[:5],
        "prompt_tokens": sum(one.prompt_tokens for one in good),
        "cached_tokens": sum(one.cached_tokens for one in good),
        "output_tokens": sum(one.output_tokens for one in good),
    }
    series = {
        "ttfet_s": [one.first_tokens_s[-1] - one.arrived_at_s for one in good],
        "last_turn_tbt_s": [gap for one in good for gap in one.last_turn_gaps_s],
        "tpot_s": [gap for one in good for gap in one.gaps_s],
        "first_turn_ttft_s": [one.ttfts_s[0] for one in good],
        "later_ttft_s": [ttft for one in good for ttft in one.ttfts_s[1:]],
        "e2e_s": [one.ended_at_s - one.arrived_at_s for one in good],
    }
    for name, values in series.items():
        found[name] = {**spread(values), "mean": statistics.fmean(values)} if values else None
    return found


def energy_of(
    idle_w: float | None, busy_w: float | None, seconds: float, told: dict[str, Any]
) -> dict[str, Any]:
    """Joules of the run: all of it, what is above idle, and per conversation and output token."""
    if busy_w is None:
        return {"joules": None, "why": "the meter told no power over the run"}
    joules = busy_w * seconds
    num_tokens, num_answered = told["output_tokens"], told["num_answered"]
    return {
        "joules": joules,
        "mean_w": busy_w,
        "idle_w": idle_w,
        "joules_above_idle": None if idle_w is None else (busy_w - idle_w) * seconds,
        "j_per_conversation": joules / num_answered if num_answered else None,
        "j_per_output_token": joules / num_tokens if num_tokens else None,
    }


def meter_of(choice: str) -> tuple[PowerTrack | None, str]:
    """The first GPU's power, or why there is none."""
    if choice == "none":
        return None, "no meter was asked for"
    try:
        meter = open_meter(choice, with_cpus=False)
        gpus = [device.device_id for device in meter.devices() if device.kind is Kind.GPU]
        if not gpus:
            meter.close()
            return None, "the meter tells of no GPU"
        return PowerTrack(meter, gpus[:1]), ""
    except MeterError as error:
        return None, str(error)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Idle for a while, play, and say what it came to."""
    plans, statement = workload(
        options.conversations, options.rate, options.window, seed=options.seed
    )
    rng = random.Random(options.seed)
    talker = Talker(options.url, Role.MIXED, num_token_ids=options.token_ids, rng=rng)
    track, why = meter_of(options.meter)
    idle_w = busy_w = None
    playing = play(talker, plans, run=options.policy, seed=options.seed)
    if track is None:
        played, began_s, ended_s = await playing
    else:
        with track.running():
            idle_from_s = time.monotonic()
            await asyncio.sleep(IDLE_S)
            idle_w = await asyncio.to_thread(track.watts, idle_from_s, time.monotonic())
            played, began_s, ended_s = await playing
            busy_w = await asyncio.to_thread(track.watts, began_s, ended_s)
    talker.close()
    told = summary(played)
    energy = energy_of(idle_w, busy_w, ended_s - began_s, told)
    if track is None:
        energy["why"] = why
    else:
        energy |= {"source": track.source, "origin": track.origin.value}
    return {
        "policy": options.policy,
        "workload": f"{options.conversations} conversations of mini_swe, {options.rate:g} a"
        f" second, seed {options.seed}; {statement}",
        "seconds": ended_s - began_s,
        **told,
        "energy": energy,
    }


def main() -> None:
    """Play once, and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--policy", required=True, help="what the router at the URL does: a label")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.0, help="conversations a second")
    parser.add_argument("--window", type=int, default=40_000, help="longest context in tokens")
    parser.add_argument("--token-ids", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--meter", default="auto", help="auto, zeus, nvml or none")
    options = parser.parse_args()
    found = asyncio.run(run(options))
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    if found["num_answered"] < found["num_conversations"]:
        raise SystemExit(f"not all conversations were answered: {found['failures']}")


if __name__ == "__main__":
    main()
