"""Plays the demo's conversations on real servers, at given times, and keeps what each turn took."""

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from openai import AsyncOpenAI

from bench.demo.play import PlayedConversation, PlayedTurn, play_one
from bench.demo.scenario import SYSTEM, TICKETS, TOOLS, Ticket
from bench.sim_fidelity.cluster import Site
from bench.sim_fidelity.machine import LoadWatch
from conserve_sglang.workload import poisson_arrivals

NUM_CONVERSATIONS = 6
RATE_PER_S = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTurn:
    """One answered turn, in tokens and in seconds of the client's clock. `prefiller` is None for a
    turn its decoder served alone; `tbt_s` is the mean gap of its tokens."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    prefiller: str | None
    decoder: str | None
    ttft_s: float
    tbt_s: float
    e2e_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConversation:
    """One conversation, `arrived_at_s` after its run began."""

    arrived_at_s: float
    ttfet_s: float
    e2e_s: float
    turns: tuple[LiveTurn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy's conversations of one round, and how busy the machine was: `load_average` at its
    end, ours in it; `others_cores` what others used meanwhile. `is_lone`: each conversation began
    when the one before it was over."""

    policy: str
    conversations: tuple[LiveConversation, ...]
    load_average: float
    others_cores: float = 0.0
    is_lone: bool = False


def arrivals(seed: int) -> list[float]:
    """When the conversations of a round come, in seconds."""
    times = list(islice(poisson_arrivals(RATE_PER_S, random.Random(seed)), NUM_CONVERSATIONS))
    return [at_s - times[0] for at_s in times]


def tickets(run_number: int) -> list[Ticket]:
    """The demo's conversations, some twice, told apart in their first bytes.

    In the demo they all begin alike, and what one leaves in a cache shortens the next one's first
    prefill; the simulator's conversations have nothing in common.
    """
    found = []
    for number in range(NUM_CONVERSATIONS):
        mark = f"{run_number:03}-{number:02} "
        first = TOOLS[0]["function"]
        marked = {**first, "description": mark + first["description"]}
        tools = ({"type": "function", "function": {"name": first["name"], **marked}}, *TOOLS[1:])
        text = f"Ticket {number}. {TICKETS[number % len(TICKETS)]}"
        opening = (
            {"role": "system", "content": mark + SYSTEM},
            {"role": "user", "content": text},
        )
        found.append(Ticket(number, opening, tools))
    return found


class Player:
    """Plays on servers that answer, and watches the machine meanwhile.

    No two runs have a prompt in common, so nothing has to be emptied between them: with a server's
    KV its grammars go, and the next run's first turns would be slower for it.
    """

    def __init__(self, site: Site, watch: LoadWatch) -> None:
        self._site, self._watch = site, watch
        self._num_runs = 0

    def play(self, policy: str, round_number: int) -> Run:
        """All conversations at the times of a round."""
        return self._run(policy, NUM_CONVERSATIONS, arrivals(round_number))

    def play_alone(self, policy: str, count: int) -> Run:
        """A few conversations, each when the one before is over."""
        return self._run(policy, count, None)

    def _run(self, policy: str, count: int, times: Sequence[float] | None) -> Run:
        self._num_runs += 1
        given = tickets(self._num_runs)[:count]
        kind = "alone" if times is None else "at once"
        with self._watch.part(f"{policy}, {kind}") as load:
            run = _run(self._site, policy, given, times)
        return replace(run, load_average=load.load_average, others_cores=load.others_cores)


def _run(site: Site, policy: str, given: Sequence[Ticket], times: Sequence[float] | None) -> Run:
    played, began_s = asyncio.run(_play(site, policy, given, times))
    for conversation in played:
        if conversation.name is not None:
            site.end(policy, conversation.name)
    return Run(
        policy=policy,
        conversations=tuple(_live(conversation, began_s) for conversation in played),
        load_average=os.getloadavg()[0],
        is_lone=times is None,
    )


async def _play(
    site: Site, policy: str, given: Sequence[Ticket], times: Sequence[float] | None
) -> tuple[list[PlayedConversation], float]:
    loop = asyncio.get_running_loop()
    async with AsyncOpenAI(
        base_url=f"{site.routers[policy]}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        began_s = loop.time()
        if times is None:
            return [await play_one(client, site.model, ticket) for ticket in given], began_s
        return await asyncio.gather(
            *(
                _at(began_s + at_s, client, site.model, t)
                for at_s, t in zip(times, given, strict=True)
            )
        ), began_s


async def _at(at_s: float, client: AsyncOpenAI, model: str, ticket: Ticket) -> PlayedConversation:
    await asyncio.sleep(max(0.0, at_s - asyncio.get_running_loop().time()))
    return await play_one(client, model, ticket)


def _live(played: PlayedConversation, began_s: float) -> LiveConversation:
    first, last = played.turns[0].event_times, played.turns[-1].event_times
    return LiveConversation(
        arrived_at_s=first.arrived_at_s - began_s,
        ttfet_s=last.token_at_s[0] - first.arrived_at_s,
        e2e_s=last.token_at_s[-1] - first.arrived_at_s,
        turns=tuple(_turn(turn) for turn in played.turns),
    )


def _turn(turn: PlayedTurn) -> LiveTurn:
    times = turn.event_times
    decoding_s = times.token_at_s[-1] - times.token_at_s[0]
    return LiveTurn(
        prompt_tokens=turn.prompt_tokens,
        cached_tokens=turn.cached_tokens,
        output_tokens=turn.output_tokens,
        prefiller=turn.prefiller,
        decoder=turn.decoder,
        ttft_s=times.ttft_s,
        tbt_s=decoding_s / max(1, turn.output_tokens - 1),
        e2e_s=times.e2e_s,
    )


def described(run: Run) -> dict[str, Any]:
    """A run for the record, times in milliseconds."""
    return {
        "policy": run.policy,
        "is_lone": run.is_lone,
        "load_average": round(run.load_average, 2),
        "others_cores": round(run.others_cores, 3),
        "conversations": [
            {
                "arrived_at_s": round(one.arrived_at_s, 3),
                "turns": [
                    [
                        turn.prompt_tokens,
                        turn.cached_tokens,
                        turn.output_tokens,
                        turn.prefiller,
                        turn.decoder,
                        round(1e3 * turn.ttft_s, 1),
                        round(1e3 * turn.tbt_s, 3),
                        round(1e3 * turn.e2e_s, 1),
                    ]
                    for turn in one.turns
                ],
            }
            for one in run.conversations
        ],
    }
