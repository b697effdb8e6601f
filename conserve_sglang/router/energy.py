"""What conversations and workers use, as the agents of the deployment's hosts tell it.

Each agent is asked in turn for what it billed since last time. What it says of a turn is added to
the turn's conversation; its counters go to Prometheus. An agent settles a moment after the fact, so
a turn's energy comes after its answer: what is told before says that it is not final.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from conserve_sglang.core.errors import WorkerError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.router.conversations import Conversation
from conserve_sglang.router.used import Used
from conserve_sglang.serving.ending import ended
from conserve_sglang.telemetry.energy import Books, DeviceReading, EnergyLabels, EnergyReading
from conserve_sglang.workers.access import WorkerAccess
from conserve_sglang.workers.fetch import fetch
from conserve_sglang.workers.pool import ConnectionPool

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
LEAST_INTERVAL_S = 1.0


class _Agent:
    """One host's agent, and what it said last."""

    def __init__(self, host: str, pool: ConnectionPool) -> None:
        self.host = host
        self.pool = pool
        self.incarnation = ""
        self.settling = 0
        self.settled_at_s: float | None = None  # of the router's clock
        self.counters: dict[EnergyLabels, float] = {}
        self.base: dict[EnergyLabels, float] = {}  # of its lives before
        self.watts: dict[EnergyLabels, float] = {}
        self.devices: Sequence[DeviceReading] = ()
        self.is_up = False
        self.num_gaps = 0  # times that it had forgotten, or lost by a restart, what it had billed
        self.gap_from_s = math.inf  # of the router's clock: all of the gaps
        self.gap_to_s = -math.inf
        self.books = Books()
        self.books_before = Books()  # of its lives before

    def lost(self, now: float) -> None:
        """What was billed since it was last heard may be lost."""
        if self.settled_at_s is not None:
            self.gap_from_s = min(self.gap_from_s, self.settled_at_s)
        self.gap_to_s = now
        self.num_gaps += 1


class EnergyWatch:
    """Asks the agents; there is one where the tier map reads energy. Lives in the brain's loop."""

    def __init__(
        self,
        tier_map: TierMap,
        find: Callable[[str], Conversation | None],
        clock: Callable[[], float],
        admin_key: str | None,
    ) -> None:
        assert tier_map.energy is not None
        self._find = find
        self._clock = clock
        self._interval_s = max(LEAST_INTERVAL_S, tier_map.energy.interval_s)
        access = WorkerAccess(api_key=admin_key)
        port = tier_map.energy.agent_port
        self._agents = [
            _Agent(host, ConnectionPool(host, port, access=access))
            for host in sorted({worker.host for worker in tier_map.workers})
        ]
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._task = asyncio.get_running_loop().create_task(self._ask_on())

    async def stop(self) -> None:
        """Ask no more."""
        task, self._task = self._task, None
        await ended(task)
        for agent in self._agents:
            agent.pool.close()

    def told(self, conversation: Conversation) -> dict[str, Any] | None:
        """What a conversation has used, as its status shows it; None before anything is known."""
        used = conversation.energy
        if used is None:
            return None
        return {
            "joules": round(used.joules, 6),
            "phases": {phase: round(joules, 6) for phase, joules in used.phases.items()},
            "turns": {str(turn): round(joules, 6) for turn, joules in sorted(used.turns.items())},
            "origin": used.origin,
            "split": used.split,
            "is_final": self.is_final(conversation),
            "is_complete": self.is_complete(conversation),
        }

    def is_complete(self, conversation: Conversation) -> bool:
        """Whether nothing of it is known to be lost: since its first turn no agent forgot what it
        had billed, or was restarted. After the router's restart only new conversations are."""
        used = conversation.energy
        is_open = conversation.num_open_turns > 0
        return (used is None or used.first_turn <= 1) and not any(
            (is_open or conversation.ended_at_s >= agent.gap_from_s)
            and (used is None or used.since_s <= agent.gap_to_s)
            for agent in self._agents
        )

    def is_final(self, conversation: Conversation) -> bool:
        """Whether every agent has settled past the end of the conversation's last turn."""
        settled = [agent.settled_at_s for agent in self._agents]
        return conversation.num_open_turns == 0 and all(
            at_s is not None and at_s >= conversation.ended_at_s for at_s in settled
        )

    def reading(self) -> EnergyReading:
        """For Prometheus."""
        now = self._clock()
        joules: dict[EnergyLabels, float] = {}
        for agent in self._agents:
            for part in (agent.base, agent.counters):
                for labels, value in part.items():
                    joules[labels] = joules.get(labels, 0.0) + value
        return EnergyReading(
            joules=joules,
            watts={key: value for agent in self._agents for key, value in agent.watts.items()},
            devices=tuple(device for agent in self._agents for device in agent.devices),
            agents_up={agent.host: agent.is_up for agent in self._agents},
            settled_age_s={
                agent.host: max(0.0, now - agent.settled_at_s)
                for agent in self._agents
                if agent.settled_at_s is not None
            },
            books={agent.host: _sum(agent) for agent in self._agents},
        )

    async def ask(self) -> None:
        """Ask every agent once."""
        await asyncio.gather(*map(self._ask, self._agents))

    async def _ask_on(self) -> None:
        while True:
            try:
                await self.ask()
            except Exception:
                logger.exception("the agents' energy could not be taken in; they are asked again")
            await asyncio.sleep(self._interval_s)

    async def _ask(self, agent: _Agent) -> None:
        asked_at_s = self._clock()
        path = f"/energy?since={agent.settling}"
        try:
            status, body = await fetch(agent.pool, "GET", path, timeout_s=TIMEOUT_S)
            told = _decoder.decode(body) if status == 200 else None
        except (WorkerError, msgspec.MsgspecError) as error:
            self._lost(agent, str(error))
            return
        if told is None:
            self._lost(agent, f"it answered {status}; has it another admin key?")
            return
        if not agent.is_up:
            logger.info("the agent of %s tells energy", agent.host)
            agent.is_up = True
        if told.incarnation != agent.incarnation:
            is_first = not agent.incarnation
            if not is_first:
                agent.lost(asked_at_s)
            _begin_anew(agent, told.incarnation)
            if not is_first:
                return  # asked again, from its beginning
        elif told.has_forgotten:
            agent.lost(asked_at_s)
            logger.warning("the agent of %s forgot what it had billed to turns", agent.host)
        self._take(agent, told, asked_at_s)

    def _take(self, agent: _Agent, told: "_Energy", asked_at_s: float) -> None:
        for key, turn, _, phase, origin, split, joules in told.turns:
            conversation = self._find(key)
            if conversation is not None:
                used = conversation.energy
                if used is None:
                    used = conversation.energy = Used(asked_at_s)
                used.add(turn, phase, joules, origin, split)
        counters = {
            EnergyLabels(worker, tier, phase, origin, split): joules
            for worker, tier, phase, origin, split, joules in told.counters
        }
        settled_at_s = asked_at_s - told.settled_age_s
        if agent.settled_at_s is not None and settled_at_s > agent.settled_at_s + 0.05:
            seconds = settled_at_s - agent.settled_at_s
            agent.watts = _power(agent.counters, counters, seconds)
        if agent.settled_at_s is None or settled_at_s > agent.settled_at_s:
            agent.settled_at_s = settled_at_s
        agent.counters, agent.settling = counters, told.settling
        agent.books = Books(
            late_s=told.late_s,
            num_refused_windows=told.refused_windows,
            num_lost_files=told.lost_files,
            num_outside_profile=told.outside_profile,
            num_unmeasured=len(told.unmeasured),
        )
        agent.devices = tuple(
            DeviceReading(agent.host, each.id, each.kind, each.origin, each.joules, each.watts)
            for each in told.devices
        )

    def _lost(self, agent: _Agent, why: str) -> None:
        if agent.is_up or not agent.incarnation:
            logger.warning("the agent of %s tells no energy: %s", agent.host, why)
        agent.is_up = False
        agent.watts = {}


def _begin_anew(agent: _Agent, incarnation: str) -> None:
    for labels, value in agent.counters.items():
        agent.base[labels] = agent.base.get(labels, 0.0) + value
    agent.books_before, agent.books = _sum(agent), Books()
    agent.counters, agent.settling, agent.incarnation = {}, 0, incarnation
    agent.settled_at_s = None


def _sum(agent: _Agent) -> Books:
    """An agent's books over all of its lives; workers without a meter are those of now."""
    before, now = agent.books_before, agent.books
    return Books(
        late_s=before.late_s + now.late_s,
        num_refused_windows=before.num_refused_windows + now.num_refused_windows,
        num_lost_files=before.num_lost_files + now.num_lost_files,
        num_outside_profile=before.num_outside_profile + now.num_outside_profile,
        num_unmeasured=now.num_unmeasured,
        num_gaps=agent.num_gaps,
    )


def _power(
    before: dict[EnergyLabels, float], after: dict[EnergyLabels, float], seconds: float
) -> dict[EnergyLabels, float]:
    """Mean watts of each worker, its phases together."""
    watts: dict[EnergyLabels, float] = {}
    for labels, joules in after.items():
        whole = EnergyLabels(labels.worker, labels.tier, "", labels.origin, labels.split)
        grown_j = joules - before.get(labels, 0.0)
        watts[whole] = watts.get(whole, 0.0) + grown_j / seconds
    return watts


class _Device(msgspec.Struct):
    id: str
    kind: str
    origin: str
    joules: float
    watts: float | None = None


class _Energy(msgspec.Struct):
    incarnation: str
    settling: int
    settled_age_s: float
    devices: list[_Device]
    counters: list[tuple[str, str, str, str, str, float]]
    turns: list[tuple[str, int, str, str, str, str, float]]
    has_forgotten: bool = False
    late_s: float = 0.0
    refused_windows: int = 0
    lost_files: int = 0
    outside_profile: int = 0
    unmeasured: list[str] = []


_decoder = msgspec.json.Decoder(_Energy)
