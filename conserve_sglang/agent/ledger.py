"""What every worker, phase and turn has used: windows of meters settled against phase logs. No I/O.

A window can be split once every batch that ran in it is known. Batches are logged when they end,
and prefill batches also when they begin; so a window is settled `SETTLE_S` after its end, or when
the batches under way then have ended, `MOST_WAIT_S` later at the latest. A batch that is heard of
later finds its time billed as idle; `late_s` says how much of that there was.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.phase_log import IDLE, Batch, Entry, Launched, Opened
from conserve_sglang.energy.meter import Origin
from conserve_sglang.energy.work import Predictor, span_of
from conserve_sglang.power.attribution import (
    Account,
    IdlePower,
    MeterWindow,
    Span,
    attribute,
)

SETTLE_S = 1.0
MOST_WAIT_S = 60.0
LEAST_WINDOW_S = 0.15
MOST_ROWS = 50_000
MOST_TOLD = 10_000
MOST_SPANS = 200_000  # of a worker, while a meter that fails lets nothing be settled

OWN, ATTRIBUTED = "own", "attributed"
"""Whether a counter saw the worker alone, or a device's joules were split between workers."""


@dataclass(frozen=True, slots=True)
class Counter:
    """What joules are counted under; its fields are the labels."""

    worker: WorkerId
    phase: str
    origin: str
    split: str


@dataclass(frozen=True, slots=True)
class Row:
    """Joules that one turn was billed in one settling; `number` counts settlings from 1."""

    number: int
    conversation: str
    turn: int
    counter: Counter
    joules: float


@dataclass(slots=True)
class _Worker:
    predictor: Predictor | None
    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=MOST_SPANS))
    under_way: deque[float] = field(default_factory=deque)


@dataclass(slots=True)
class _Device:
    workers: tuple[WorkerId, ...]
    idle: IdlePower

    @property
    def split(self) -> str:
        return OWN if len(self.workers) == 1 else ATTRIBUTED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """A window of the meter: each device's joules and their origin."""

    start_s: float
    end_s: float
    used: Mapping[str, tuple[float, Origin]]


def _joined(first: _Pending, second: _Pending) -> _Pending:
    used = {}
    for device_id, (joules, origin) in first.used.items():
        more_j, other = second.used[device_id]
        is_measured = origin is other is Origin.MEASURED
        used[device_id] = (joules + more_j, origin if is_measured else Origin.MODELLED)
    return _Pending(start_s=first.start_s, end_s=second.end_s, used=used)


class Ledger:
    """The books of one host. `users` says which workers are on which device."""

    def __init__(
        self,
        users: Mapping[str, tuple[WorkerId, ...]],
        predictors: Mapping[WorkerId, Predictor | None],
        idle_w: Mapping[str, float | None],
        joules_of: Callable[[str, float, float], float] | None = None,
    ) -> None:
        self._joules_of = joules_of  # a device's from .. to, told only once its work is known
        self._workers = {worker: _Worker(predictor) for worker, predictor in predictors.items()}
        self._devices = {
            device: _Device(tuple(workers), IdlePower(idle_w.get(device)))
            for device, workers in users.items()
        }
        self._pending: deque[_Pending] = deque()
        self.counters: dict[Counter, float] = {}
        self.rows: deque[Row] = deque(maxlen=MOST_ROWS)
        self.number = 0
        self.settled_to_s = -math.inf
        self.late_s = 0.0
        self.num_refused_windows = 0

    def hear(self, worker: WorkerId, entry: Entry) -> Span | None:
        """A line of a worker's log; the span it became, if it did."""
        known = self._workers[worker]
        if isinstance(entry, Launched):
            known.under_way.append(entry.at_s)
        elif isinstance(entry, Opened):
            if entry.number == 1:
                known.under_way.clear()  # another process: what ran in the last one is over
        elif isinstance(entry, Batch):
            if known.under_way and not entry.is_decode:
                known.under_way.popleft()
            if entry.start_s < self.settled_to_s:
                self.late_s += min(entry.end_s, self.settled_to_s) - entry.start_s
            if entry.end_s > self.settled_to_s and entry.end_s > entry.start_s:
                span = span_of(worker, entry, known.predictor)
                known.spans.append(span)
                return span
        return None

    def measured(
        self, start_s: float, end_s: float, used: Mapping[str, tuple[float, Origin]]
    ) -> None:
        """What the devices used in a window; windows come in order and do not overlap.

        A counter's steps would show in one much shorter than `LEAST_WINDOW_S`, as a reading out of
        turn makes it: it becomes part of the one before.
        """
        pending = _Pending(start_s=start_s, end_s=end_s, used=used)
        if self._pending and end_s - start_s < LEAST_WINDOW_S:
            before = self._pending.pop()
            if before.used.keys() == used.keys():
                pending = _joined(before, pending)
            else:
                self._pending.append(before)
        self._pending.append(pending)

    def due(self, now: float) -> Sequence[tuple[float, float]]:
        """The windows that can be settled now, oldest first."""
        under_way = (at_s for worker in self._workers.values() for at_s in worker.under_way)
        oldest = min((at_s for at_s in under_way if now - at_s < MOST_WAIT_S), default=math.inf)
        found = []
        for window in self._pending:
            waited_s = now - window.end_s
            if waited_s < SETTLE_S or (oldest < window.end_s and waited_s < MOST_WAIT_S):
                break
            found.append((window.start_s, window.end_s))
        return found

    def settle(self, now: float) -> int:
        """Split every window that is due over the work in it; how many."""
        due = self.due(now)
        for _ in due:
            self._settle(self._pending.popleft())
        return len(due)

    def idle_w(self, device_id: str) -> float | None:
        """A device's idle power in watts, as seen or as its profile has it."""
        device = self._devices.get(device_id)
        return None if device is None else device.idle.watts

    def rows_since(self, number: int) -> tuple[list[Row], bool]:
        """What was billed to turns after that settling, and whether some of it is forgotten.

        Of much, the settlings that come first, whole: `told_to` says how far they reach.
        """
        found = [row for row in self.rows if row.number > number]
        if len(found) > MOST_TOLD:
            last = found[MOST_TOLD].number
            found = [row for row in found if row.number < last] or [
                row for row in found if row.number == last
            ]
        is_full = len(self.rows) == self.rows.maxlen
        return found, is_full and bool(self.rows) and self.rows[0].number > number + 1

    def told_to(self, found: Sequence[Row]) -> int:
        """The last settling of which these rows tell everything."""
        if found and self.rows[-1].number > found[-1].number:
            return found[-1].number
        return self.number

    def _settle(self, pending: _Pending) -> None:
        self.number += 1
        billed: dict[tuple[str, int, Counter], float] = {}
        for device_id, (told_j, origin) in pending.used.items():
            joules = told_j
            device = self._devices.get(device_id)
            if device is None:
                continue  # none of our workers is on it
            if self._joules_of is not None:
                joules = self._joules_of(device_id, pending.start_s, pending.end_s)
            if not (joules >= 0 and pending.end_s > pending.start_s):
                self.num_refused_windows += 1  # the counter was reset
                continue
            self._bill(device, pending, joules, origin, billed)
        for (conversation, turn, counter), joules in billed.items():
            self.rows.append(Row(self.number, conversation, turn, counter, joules))
        self.settled_to_s = pending.end_s
        for worker in self._workers.values():
            while worker.spans and worker.spans[0].end_s <= pending.end_s:
                worker.spans.popleft()

    def _bill(
        self,
        device: _Device,
        pending: _Pending,
        joules: float,
        origin: Origin,
        billed: dict[tuple[str, int, Counter], float],
    ) -> None:
        window = MeterWindow(start_s=pending.start_s, end_s=pending.end_s, joules=joules)
        spans = [span for worker in device.workers for span in self._workers[worker].spans]
        bill = attribute(window, spans, device.idle.watts)
        device.idle.see(window, bill.busy_s)
        for worker in device.workers:
            idle = Account(worker, IDLE, None, 0)
            self._count(idle, bill.idle_j / len(device.workers), origin, device.split)
        for account, part_j in bill.work_j.items():
            counter = self._count(account, part_j, origin, device.split)
            if account.conversation is not None:
                key = (account.conversation, account.turn, counter)
                billed[key] = billed.get(key, 0.0) + part_j

    def _count(self, account: Account, joules: float, origin: Origin, split: str) -> Counter:
        counter = Counter(account.worker, account.phase, origin.value, split)
        self.counters[counter] = self.counters.get(counter, 0.0) + joules
        return counter
