"""Placements of turns that are under way together: the router, on fake workers, and the simulator
agree. Waves of turns arrive one right after the other, before any of them is answered.

Not of policies that read speeds (`work-conserving`, `conserve-pack`): fake workers have others.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from conserve_sglang.sim import TurnRecord
from conserve_sglang.workload import ConversationPlan, TurnPlan
from tests.fakes.router_cluster import Answer, Cluster, a_cluster
from tests.sim.builders import a_deployment, a_plan, play
from tests.sim.test_parity import ANSWER, MODES

WAVE_S, BETWEEN_S = 60.0, 1e-4
Wave = list[tuple[str, int]]
Placed = tuple[str, str | None, str, str]
POLICIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("conserve", {}),
    ("conserve-blind", {}),
    ("static-ppd", {}),
    ("dynamo-like", {}),
    ("dynamo-like", {"max_prefill_queue": 2}),
    ("stock-pd", {}),
    ("stock-pd", {"sticky": True}),
    ("colocated", {}),
    ("colocated", {"choose": "least_backlog"}),
    ("round-robin", {}),
)


def some_waves(seed: int) -> list[Wave]:
    """Who appends how much, in order of arrival: two waves of beginnings, then later turns."""
    rng = random.Random(seed)
    names = [f"c{number}" for number in range(10)]
    waves = [[(name, rng.randrange(50, 3000)) for name in half] for half in (names[:5], names[5:])]
    for _ in range(3):
        wave = rng.sample(names, 6)
        waves.append([(name, rng.choice([20, 67, 300, 2047, 2048, 2500])) for name in wave])
    return waves


def simulated(policy: str, params: dict[str, Any], waves: Sequence[Wave]) -> list[Placed]:
    """Each wave begins at a second of its own: tool gaps are set by when turns end, which is what a
    run of the waves before tells."""
    deployment = replace(
        a_deployment(*MODES, policy=policy, capacity=100_000, **params), says_goodbye=False
    )
    plans: dict[str, ConversationPlan] = {}
    turns: list[tuple[str, TurnRecord]] = []
    for number, wave in enumerate(waves, start=1):
        ends_at_s = {name: turn.last_token_at_s for name, turn in turns}
        for place, (name, append) in enumerate(wave):
            at_s = WAVE_S * number + BETWEEN_S * place
            plan = plans.get(name)
            if plan is None:
                plans[name] = a_plan(name, (append, len(ANSWER)), at=at_s)
                continue
            context = plan.turns[-1].input_tokens + len(ANSWER)
            turn = TurnPlan(
                input_tokens=context + append,
                output_tokens=len(ANSWER),
                shared_tokens=context,
                gap_s=at_s - ends_at_s[name],
            )
            plans[name] = replace(plan, turns=(*plan.turns, turn))
        records = play(deployment, plans.values())
        turns = [(name, turn) for name, record in records.items() for turn in record.turns]
        turns.sort(key=lambda pair: pair[1].arrived_at_s)
    return [(n, turn.prefiller, turn.decoder, turn.reason.value) for n, turn in turns]


async def routed(cluster: Cluster, waves: Sequence[Wave]) -> list[Placed]:
    prompts: dict[str, list[int]] = {}
    placed: list[Placed] = []
    for wave in waves:
        clients = []
        for worker in cluster.workers.values():
            worker.freeze()
        for place, (name, append) in enumerate(wave, start=1):
            prompt = prompts.setdefault(name, [])
            prompt += [200 + len(placed) + place] * append
            body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": len(ANSWER)}}
            clients.append(await cluster.connect())
            clients[-1].ask("/generate", body, {"x-conversation-id": name})
            await until_open(cluster, place)
        for worker in cluster.workers.values():
            worker.thaw()
        for client, (name, _) in zip(clients, wave, strict=True):
            placed.append((name, *_place(await client.answer())))
            prompts[name] += map(ord, ANSWER)
        await until_open(cluster, 0)
    return placed


async def until_open(cluster: Cluster, num_turns: int) -> None:
    dispatcher = cluster.service.brain.dispatcher
    await cluster.until(lambda: dispatcher.num_open_turns == num_turns)


def _place(answer: Answer) -> tuple[str | None, str, str]:
    told = answer.headers
    assert answer.status == 200, answer.body
    prefiller = told.get("x-conserve-prefiller")
    return prefiller, told["x-conserve-decoder"], told["x-conserve-reason"]


@pytest.mark.parametrize(("policy", "params"), POLICIES)
async def test_router_and_simulator_place_alike_under_load(
    policy: str, params: dict[str, Any]
) -> None:
    waves = some_waves(7)
    async with a_cluster(MODES, policy=policy, params=params) as cluster:
        placed = await routed(cluster, waves)
    assert placed == simulated(policy, params, waves)
    assert len({decoder for _, _, decoder, _ in placed}) == 3
