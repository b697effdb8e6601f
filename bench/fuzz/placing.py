"""What trusted clients ask of `/v1/place` and report, fed to a brain over workers that are up.

No socket is opened: the workers are only said to be there, and nobody is told to forget anything.
"""

import asyncio
import itertools
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from conserve_sglang.core.ids import ConversationId, WorkerId
from conserve_sglang.dispatch import Dispatcher, Tick, dispatch_settings
from conserve_sglang.dispatch.invariants import validate
from conserve_sglang.policy.registry import make_served_policy
from conserve_sglang.router.brain import Brain
from conserve_sglang.router.fleet import Fleet
from conserve_sglang.router.meter import Meter
from conserve_sglang.router.place import Placements
from conserve_sglang.router.place_answer import LEASE_S
from conserve_sglang.router.ports import Question, Subject, Told
from conserve_sglang.telemetry.metrics import RouterMetrics
from conserve_sglang.tiermap import parse_tier_map
from conserve_sglang.workers.probe import WorkerFacts

CAPACITY_TOKENS = 10_000
_GOOD = b'{"conversation_id":"good","input_tokens":700}'
_DONE = b'{"turn":"1","event":"done","prompt_tokens":700,"output_tokens":9,"cached_tokens":0}'
_TIER_MAP = """schema_version: 1
model: {path: fuzz, served_name: fuzz}
tiers:
  - {name: p, role: prefill, gpu: cpu, count: 1, base_port: 20000, bootstrap_base_port: 20100}
  - {name: d, role: decode, gpu: cpu, count: 2, base_port: 21000}
"""


class _Workers(Fleet):
    """Workers that are up, of which nothing is asked."""

    def release(self, worker_id: WorkerId, conversation_id: ConversationId) -> None:
        pass


class _Place:
    """A brain in an event loop of its own; the clock goes on as it is told."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.now_s = 0.0
        tier_map = parse_tier_map(_TIER_MAP, source="fuzz", folder=Path())
        policy = make_served_policy(tier_map.policy)
        self.queue_timeout_s = tier_map.router.queue_timeout_s
        self.dispatcher = Dispatcher(policy, dispatch_settings(tier_map.router))
        self._fleet = fleet = _Workers(tier_map, trusts_decoders=True)
        self.brain = Brain(self.dispatcher, fleet, lambda: self.now_s, b"secret", 100)
        fleet.tell = self.brain.tell
        fleet.books = self.dispatcher
        for worker in fleet.workers():
            facts = WorkerFacts(
                mode=worker.plan.role.value,
                kv_capacity_tokens=CAPACITY_TOKENS,
                serves_local_turns=True,
                served_name="fuzz",
                version="0.5.23",
                incarnation="fuzz",
            )
            fleet.met(worker, facts)

    def pass_s(self, seconds: float) -> None:
        """Let time go by."""
        self.now_s += seconds
        self.brain.tell(Tick())

    def placements(self) -> Placements:
        """A new desk, whose turns are called 1, 2, and so on."""
        placements = Placements(self.brain, self._fleet.worker, lambda: self.now_s)
        placements.meter = Meter(RouterMetrics(), self._fleet, lambda: self.now_s, ())
        placements.new_public_id = map(str, itertools.count(1)).__next__
        return placements


@cache
def _place() -> _Place:
    return _Place()


def read_place(data: bytes) -> str:
    """A body that asks for a place and, for a turn that was placed, reports what became of it.

    Every question is answered once, at once or when its turn has waited too long. Once all leases
    are over, nothing is open, and the books add up.
    """
    place = _place()
    return place.loop.run_until_complete(_ask_and_report(place, data))


async def _ask_and_report(place: _Place, data: bytes) -> str:
    placements = place.placements()
    answers: list[list[Told]] = []

    def put(asked: Callable[[Question, Callable[[Told], None]], None], body: bytes) -> Any:
        heard: list[Told] = []
        answers.append(heard)
        asked(Question(Subject.PLACE, body=body), heard.append)
        return _checked(heard[0]) if heard else None

    assert "decoder" in put(placements.ask, _GOOD)
    placed = put(placements.ask, data)
    reported = put(placements.report, data)
    put(placements.report, data)
    put(placements.report, _DONE)
    place.pass_s(place.queue_timeout_s + 1)  # those that wait are told that there is no room
    place.pass_s(LEASE_S)
    placements.sweep()
    placements.stop()
    await asyncio.sleep(0)  # conversations that are gone are forgotten
    assert all(len(heard) == 1 for heard in answers)
    assert not len(placements)
    assert not place.dispatcher.num_open_turns
    assert not any(load.reserved_tokens for load in place.dispatcher.worker_loads())
    validate(place.dispatcher)
    return _outcome(placed, reported)


def _checked(told: Told) -> Any:
    """A place, a receipt, or an error that says what is wrong."""
    body = json.loads(told.body)
    if told.status == 200:
        assert body["object"] in ("placement", "placement.report")
        assert isinstance(body["turn"], str)
    else:
        assert 400 <= told.status < 600
        assert body["error"]["message"]
    return body


def _outcome(placed: Any, reported: Any) -> str:
    if placed is None:
        return "waits"
    if "error" not in placed:
        return "placed"
    if reported is None or "error" not in reported:
        return "reported"
    codes = {placed["error"]["code"], reported["error"]["code"]} - {"invalid_body"}
    return "refused " + (", ".join(sorted(codes)) or "invalid_body")
