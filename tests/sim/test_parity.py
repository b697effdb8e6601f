"""The same conversations through the router, on fake workers, and through the simulator: the same
placements. What is studied is what serves."""

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.policy import POLICIES
from conserve_sglang.sim import TurnRecord
from conserve_sglang.workload import ConversationPlan, TurnPlan
from tests.fakes.router_cluster import Cluster, a_cluster
from tests.sim.builders import a_deployment, play

ANSWER = "the answer"
MODES = {"p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode", "d2": "decode"}
SLOT_S = 15.0
Turn = tuple[str, int]
Placed = tuple[str, str | None, str]


def a_script(seed: int) -> list[Turn]:
    """Turns in the order in which they are asked for, one at a time: conversation and append."""
    rng = random.Random(seed)
    script = [(f"c{n}", rng.randrange(50, 9000)) for n in range(6)]
    script += [
        (f"c{rng.randrange(6)}", rng.choice([20, 67, 300, 2047, 2048, 3000])) for _ in range(12)
    ]
    return script


def plans_of(script: list[Turn]) -> list[ConversationPlan]:
    """The script as conversations whose turns come in its order; a turn takes less than a slot."""
    turns: dict[str, list[TurnPlan]] = {}
    slots: dict[str, list[int]] = {}
    for slot, (name, append) in enumerate(script):
        earlier = turns.setdefault(name, [])
        context = earlier[-1].input_tokens + len(ANSWER) if earlier else 0
        gap_s = SLOT_S * (slot - slots[name][-1]) if earlier else 0.0
        earlier.append(
            TurnPlan(
                input_tokens=context + append,
                output_tokens=len(ANSWER),
                shared_tokens=context,
                gap_s=gap_s,
            )
        )
        slots.setdefault(name, []).append(slot)
    return [
        ConversationPlan(
            conversation_id=ConversationId(name),
            turns=tuple(plans),
            arrived_at_s=SLOT_S * slots[name][0],
        )
        for name, plans in turns.items()
    ]


def simulated(policy: str, script: list[Turn], modes: Mapping[str, str] = MODES) -> list[Placed]:
    deployment = a_deployment(*modes, policy=policy, capacity=100_000)
    records = play(replace(deployment, says_goodbye=False), plans_of(script))
    turns: list[tuple[str, TurnRecord]] = [
        (name, turn) for name, record in records.items() for turn in record.turns
    ]
    turns.sort(key=lambda pair: pair[1].arrived_at_s)
    return [(name, turn.prefiller, turn.decoder) for name, turn in turns]


async def routed(cluster: Cluster, script: list[Turn]) -> list[Placed]:
    prompts: dict[str, list[int]] = {}
    placed: list[Placed] = []
    for number, (name, append) in enumerate(script):
        prompt = prompts.setdefault(name, [])
        prompt += [200 + number] * append
        before = {worker: len(fake.turns) for worker, fake in cluster.workers.items()}
        answer = await cluster.post(
            "/generate",
            {"input_ids": prompt, "sampling_params": {"max_new_tokens": 10}},
            {"x-conversation-id": name},
        )
        assert answer.status == 200
        used = [w for w, fake in cluster.workers.items() if len(fake.turns) > before[w]]
        prefiller = next((worker for worker in used if worker.startswith("p")), None)
        (decoder,) = [worker for worker in used if not worker.startswith("p")]
        placed.append((name, prefiller, decoder))
        prompt += map(ord, ANSWER)
    return placed


SERVED = [name for name, kind in POLICIES.items() if kind.only_simulated is None]


@pytest.mark.parametrize("policy", SERVED)
async def test_router_and_simulator_place_alike(policy: str) -> None:
    script = a_script(20260601839)
    async with a_cluster(MODES, policy=policy) as cluster:
        placed = await routed(cluster, script)
    assert placed == simulated(policy, script)
    if policy == "conserve":
        tails = placed[6:]
        assert any(prefiller is None for _, prefiller, _ in tails)
        assert any(prefiller is not None for _, prefiller, _ in tails)
        assert len({decoder for _, _, decoder in placed}) == 3


async def test_on_mixed_workers_they_place_alike_too() -> None:
    modes = {"m0": "null", "m1": "null", "m2": "null"}
    script = a_script(20260601839)
    async with a_cluster(modes, policy="work-conserving") as cluster:
        placed = await routed(cluster, script)
    assert placed == simulated("work-conserving", script, modes)
    homes = {name: worker for name, _, worker in placed}
    assert all(homes[name] == worker for name, _, worker in placed), "conversations stay"
    assert set(homes.values()) == set(modes)
