"""What the router tells about itself: health, workers, conversations, the gauges of a scrape."""

from collections import Counter
from typing import Any, Protocol

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch import Dispatcher, WorkerLoad
from conserve_sglang.router.conversations import Conversation
from conserve_sglang.router.energy import EnergyWatch
from conserve_sglang.router.fleet import Fleet, Worker
from conserve_sglang.router.journal import Journal
from conserve_sglang.router.reports import Reports
from conserve_sglang.state import SavedConversation
from conserve_sglang.telemetry.prometheus import BreakerReading, Gauges
from conserve_sglang.workers.breaker import BreakerState

_LEVELS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class StateHealth(Protocol):
    """Whether conversations would survive the router: why not, and how often that failed."""

    problem: str | None
    num_failures: int


Answer = tuple[int, dict[str, Any]]
"""An HTTP status, and what the body says."""


class Probe(Protocol):
    """One question about the router as a whole."""

    def __call__(self, *, is_brief: bool = False) -> Answer:
        """In brief, to strangers, the status is all that is told."""
        ...


class Status:
    """Reads the dispatcher and the fleet; changes nothing."""

    def __init__(
        self, dispatcher: Dispatcher, fleet: Fleet, reports: Reports, journal: Journal
    ) -> None:
        self._dispatcher = dispatcher
        self._fleet = fleet
        self._reports = reports
        self._journal = journal
        self.memory: StateHealth | None = None
        self.energy: EnergyWatch | None = None
        self.certificate_expires_at_s: float | None = None  # the control port's
        self.is_serving = False  # conversations are restored, and clients are served
        self.is_stopping = False
        self._roles = {worker.plan.role for worker in fleet.workers()}

    def live(self, *, is_brief: bool = False) -> Answer:
        """200: the router's brain answers, whatever its workers do, also while it stops."""
        return 200, {"status": "stopping" if self.is_stopping else "alive"}

    def ready(self, *, is_brief: bool = False) -> Answer:
        """200 while a conversation that begins now lacks no worker, else 503.

        A full fleet is ready: the turn waits in line. So is a router whose state is not kept.
        """
        why = self.why_not_ready
        if why is None:
            return 200, {"status": "ready"}
        return 503, {"status": "not_ready"} if is_brief else {"status": "not_ready", "why": why}

    @property
    def why_not_ready(self) -> str | None:
        """`starting`, `stopping`, `no_decoder` or `no_prefiller`; None while it is ready."""
        if self.is_stopping:
            return "stopping"
        if not self.is_serving:
            return "starting"
        lack = self._dispatcher.lack(is_new=True)
        return None if lack is None else lack.value

    def health(self, *, is_brief: bool = False) -> Answer:
        """503 while no turn can be served, neither of a new conversation nor of one whose KV is on
        its decoder, and while the router stops, so that whoever spreads load over routers leaves
        it out; else 200, `degraded` unless all is well.

        In brief, to strangers, the status is all that is told.
        """
        workers = self._fleet.workers()
        serving = {worker.plan.role for worker in workers if worker.takes_turns}
        missing = sorted(role.value for role in self._roles - serving)
        lacks = [self._dispatcher.lack(is_new=is_new) for is_new in (True, False)]
        problem = None if self.memory is None else self.memory.problem
        is_whole = all(worker.takes_turns for worker in workers) and problem is None
        is_out = None not in lacks
        status = "unavailable" if is_out else "ok" if is_whole and not any(lacks) else "degraded"
        code = 503 if is_out or self.is_stopping else 200
        if self.is_stopping:
            status = "stopping"
        if is_brief:
            return code, {"status": status}
        body: dict[str, Any] = {
            "status": status,
            "roles_without_worker": missing,
            "new_conversations": self.why_not_ready or "served",
            "workers": {worker.worker_id: worker.standing for worker in workers},
            "queued_turns": self._dispatcher.num_queued,
            "conversations": self._dispatcher.num_conversations,
        }
        if problem is not None:
            body["state"] = problem
        return code, body

    def workers(self) -> list[dict[str, Any]]:
        """Each worker with its load by the ledger."""
        loads = {load.worker_id: load for load in self._dispatcher.worker_loads()}
        running = self._dispatcher.running_turns()
        return [
            self._worker(worker, loads.get(worker.worker_id), running)
            for worker in self._fleet.workers()
        ]

    def _worker(
        self, worker: Worker, load: WorkerLoad | None, running: Counter[WorkerId]
    ) -> dict[str, Any]:
        plan = worker.plan
        described: dict[str, Any] = {
            "id": plan.worker_id,
            "role": plan.role.value,
            "tier": plan.tier,
            "host": plan.host,
            "port": plan.port,
            **worker.standing,
            "running_turns": running[plan.worker_id],
        }
        if load is not None:
            described |= {
                "kv_capacity_tokens": load.capacity_tokens,
                "kv_resident_tokens": load.resident_tokens,
                "kv_reserved_tokens": load.reserved_tokens,
                "kv_free_tokens": load.free_tokens,
                "backlog_tokens": load.backlog_tokens,
                "conversations": load.num_conversations,
            }
        return described

    def conversation(self, conversation: Conversation) -> dict[str, Any] | None:
        """A live conversation; None once the dispatcher has let go of it."""
        view = self._dispatcher.conversation(conversation.key)
        if view is None:
            return None
        placements = self._journal.told(conversation)
        energy = None if self.energy is None else self.energy.told(conversation)
        return {
            "id": conversation.name.decode("utf-8", "replace"),
            "object": "conversation",
            "key": conversation.key,
            "decoder": view.decoder,
            "resident_tokens": view.resident_tokens,
            "turns": view.num_turns,
            "kv_transfers": view.num_kv_transfers,
            "open_turns": view.num_open_turns,
            "placements": placements,
            "placements_left_out": max(0, view.num_turns - len(placements)),
            **({} if self.energy is None else {"energy": energy}),
        }

    @staticmethod
    def elsewhere(saved: SavedConversation) -> dict[str, Any]:
        """A conversation as the replica that serves it wrote it down; it has the placements."""
        return {
            "id": saved.name.decode("utf-8", "replace"),
            "object": "conversation",
            "key": saved.key,
            "decoder": saved.worker,
            "resident_tokens": saved.resident_tokens,
            "turns": saved.num_turns,
            "kv_transfers": saved.num_kv_transfers,
            "open_turns": 0,
            "placements": [],
            "placements_left_out": saved.num_turns,
        }

    def gauges(self) -> Gauges:
        """For the metrics; a worker never met yet is shown as not up."""
        loads = {load.worker_id: load for load in self._dispatcher.worker_loads()}
        return Gauges(
            queue_depths=self._dispatcher.queue_depths,
            num_open_turns=self._dispatcher.num_open_turns,
            num_conversations=self._dispatcher.num_conversations,
            workers=tuple(
                loads.get(worker.worker_id, _absent(worker)) for worker in self._fleet.workers()
            ),
            reports=self._reports.latest(),
            num_state_failures=0 if self.memory is None else self.memory.num_failures,
            is_ready=self.why_not_ready is None,
            certificate_expires_at_s=self.certificate_expires_at_s,
            is_state_degraded=self.memory is not None and self.memory.problem is not None,
            breakers={
                worker.worker_id: BreakerReading(
                    _LEVELS[worker.breaker.state], worker.breaker.num_openings
                )
                for worker in self._fleet.workers()
            },
        )


def _absent(worker: Worker) -> WorkerLoad:
    role: Role = worker.plan.role
    return WorkerLoad(
        worker_id=WorkerId(worker.worker_id),
        role=role,
        tier=worker.plan.tier,
        is_up=False,
        takes_turns=False,
        capacity_tokens=0,
        resident_tokens=0,
        reserved_tokens=0,
        free_tokens=0,
        backlog_tokens=0,
        num_conversations=0,
    )
