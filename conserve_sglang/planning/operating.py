"""A worker's operating points: from hardware and demand to columns. Pure.

Approximations, all named so that they can be doubted one by one:

* **Prefill pool**: phase-1 prefills arrive at random and are served in order by a pool of equal
  workers (M/G/c, Allen-Cunneen; exponential waits).
* **Decode batch**: a decoder with append work for a share a of its time decodes the rest; the mean
  batch B solves  load x tokens x t(B) = B (1 - a)  with a step time t affine in B. The number of
  turns at once is spread like that of independent comers (Poisson, normal approximation).
* **Last-turn TBT**: the step at the batch's quantile, and the quantile of append work that comes
  in the middle of a median last turn.
* **TTFET**: the quantile over conversations of its parts without waits, what turns take beside
  their workers' steps among them where the profile tells it, and the waits' quantile;
  quantiles are added, which is right if they come together and too much otherwise.
* **E2E**: the same with the last turn's decode steps, each as long as the mean one.
* **KV room**: the quantile of the KV held by conversations there, tool gaps included.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from conserve_sglang.core.stats import percentile
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.demand import Demand, Part, Work
from conserve_sglang.planning.hardware import Hardware
from conserve_sglang.planning.problem import Column
from conserve_sglang.planning.queueing import (
    Service,
    mean_wait_s,
    poisson_quantile,
    service_of,
    wait_quantile_s,
)

POOLS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Sizes of a prefill pool that waits are computed for; a larger pool waits less."""
RESERVED_OUTPUT_TOKENS = 512
"""KV room that the ledger reserves for a running turn's answer (`reserve_output_tokens`)."""
FINEST_SHARE = 16
"""The demanded load's whole fractions up to this one are levels of their own."""
LEVEL_RATIO = 0.84
LOWEST_LEVEL = 0.08


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What columns are computed for: `level` is the SLO's percentile as a share, `most_workers`
    how many of the hardware there can be."""

    level: float
    load_per_s: float | None
    most_workers: int = 256


def levels(
    most_per_s: float, demanded_per_s: float | None, most_workers: int = FINEST_SHARE
) -> Iterator[float]:
    """Loads of one worker worth a column: a geometric ladder down from the most, and the whole
    fractions of the demanded load that so many workers can have."""
    level = most_per_s
    while level > LOWEST_LEVEL * most_per_s:
        yield level
        level *= LEVEL_RATIO
    if demanded_per_s is not None:
        for count in range(1, min(FINEST_SHARE, most_workers) + 1):
            if demanded_per_s / count < most_per_s:
                yield demanded_per_s / count


class Prefiller:
    """Phase-1 work on one kind of prefiller."""

    def __init__(self, hardware: Hardware, demand: Demand, target: Target) -> None:
        self._hardware, self._demand, self._target = hardware, demand, target
        perf = hardware.perf
        own = [[_prefill_s(hardware, part) for part in work.phase_one] for work in demand.works]
        self._service = service_of([time for times in own for time in times])
        self._per_conversation_s = sum(map(sum, own)) / len(own)
        self._num_per_conversation = sum(map(len, own)) / len(own)
        moves = [
            sum(
                perf.transfer_s(new) + perf.request_s(new + held) + perf.handoff_s(new + held)
                for new, held in work.phase_one
            )
            for work in demand.works
        ]
        alone = sorted(sum(times) + move for times, move in zip(own, moves, strict=True))
        self._alone_s = percentile(alone, target.level * 100)
        parts = [part for work in demand.works for part in work.phase_one]
        self._busy_w = _prefill_watts(hardware, parts)

    def columns(self) -> Iterator[Column]:
        """Each load with each pool size; none without phase-1 work."""
        if self._per_conversation_s <= 0:
            return
        target = self._target
        most = 0.97 / self._per_conversation_s
        for load in levels(most, target.load_per_s, target.most_workers):
            for pool in POOLS:
                if pool <= target.most_workers:
                    yield self._column(load, pool)

    def _column(self, load_per_s: float, pool: int) -> Column:
        hardware, busy = self._hardware, load_per_s * self._per_conversation_s
        further = max(0.0, self._num_per_conversation - 1)
        waits = wait_quantile_s(pool, busy, self._service, self._target.level)
        waits += further * mean_wait_s(pool, busy, self._service)
        idle_w = hardware.power.idle_w
        return Column(
            config=hardware.config(Role.PREFILL),
            load_per_s=load_per_s,
            mean_w=idle_w + busy * (self._busy_w - idle_w),
            peak_w=hardware.peak_w * hardware.tp,
            ttfet_s=self._alone_s + waits,
            tbt_s=0.0,
            e2e_s=self._alone_s + waits,
            min_count=pool,
            busy=busy,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A decoder's steady state: `append_busy` of its time goes to appends, `mean` turns decode
    together, one step takes `step_s`, and a token comes every `token_s` on average."""

    load_per_s: float
    append_busy: float
    mean: float
    step_s: float
    token_s: float


class Decoder:
    """Tails on one kind of decoder, or whole conversations on one kind of mixed worker."""

    def __init__(self, hardware: Hardware, demand: Demand, target: Target, role: Role) -> None:
        self._hardware, self._demand, self._target, self._role = hardware, demand, target, role
        works = demand.works
        own = [[_prefill_s(hardware, part) for part in work.local] for work in works]
        request_s = hardware.perf.request_s
        self._local_s = [
            sum(times) + sum(request_s(new + cached) for new, cached in work.local)
            for work, times in zip(works, own, strict=True)
        ]
        self._appends = service_of([time for times in own for time in times])
        self._append_s = sum(map(sum, own)) / len(works)
        self._num_local = sum(map(len, own)) / len(works)
        self._steps = demand.mean(work.steps for work in works)
        self._context = _ratio(sum(w.context_steps for w in works), sum(w.steps for w in works))
        held = (
            time * (new + cached)
            for work, times in zip(works, own, strict=True)
            for time, (new, cached) in zip(times, work.local, strict=True)
        )
        self._append_kv_s = sum(held) / len(works)
        self._idle_kv_s = demand.mean(work.idle_kv_s for work in works)
        self._idle_s = demand.mean(work.idle_s for work in works)
        self._context_steps = demand.mean(work.context_steps for work in works)
        lasts = sorted(work.last_steps for work in works if work.last_steps) or [1]
        self._last_steps = percentile(lasts, 50)

    def columns(self) -> Iterator[Column]:
        """Each load it can carry with its KV room."""
        most = self.most_load_per_s
        if most <= 0:
            return
        for load in levels(most, self._target.load_per_s, self._target.most_workers):
            yield self.column(load)

    @cached_property
    def most_load_per_s(self) -> float:
        """The most conversations a second that its time, its batch and its KV room allow."""
        slope = self._step_slope_s
        low, high = 0.0, 1.0 / max(1e-12, self._append_s + self._steps * slope)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._holds(middle) else (low, middle)
        return low

    @property
    def _step_slope_s(self) -> float:
        """What one more turn adds to a step."""
        perf = self._hardware.perf
        return perf.decode_s_per_request + perf.decode_s_per_kv_token * self._context

    def batch(self, load_per_s: float) -> Batch | None:
        """The steady state at a load; None beyond saturation."""
        append_busy = load_per_s * self._append_s
        tokens_per_s = load_per_s * self._steps
        left = 1 - append_busy - tokens_per_s * self._step_slope_s
        if left <= 0:
            return None
        mean = tokens_per_s * self._hardware.perf.decode_step_s / left
        step_s = self._step_s(mean)
        return Batch(
            load_per_s=load_per_s,
            append_busy=append_busy,
            mean=mean,
            step_s=step_s,
            token_s=step_s / (1 - append_busy),
        )

    def _step_s(self, batch: float) -> float:
        """A step never has less than the turn that waits for it."""
        return self._hardware.perf.decode_step_s + self._step_slope_s * max(1.0, batch)

    def _holds(self, load_per_s: float) -> bool:
        batch = self.batch(load_per_s)
        if batch is None:
            return False
        level = self._target.level
        if poisson_quantile(batch.mean, level) > self._hardware.max_running:
            return False
        return self._kv_tokens(batch) <= self._hardware.kv_capacity_tokens

    def _kv_tokens(self, batch: Batch) -> float:
        """The KV held there, at the SLO's percentile."""
        seconds = self._steps * batch.token_s + self._append_s + self._idle_s
        residents = batch.load_per_s * seconds
        token_seconds = self._context_steps * batch.token_s + self._append_kv_s + self._idle_kv_s
        held = batch.load_per_s * token_seconds
        spread = _ratio(poisson_quantile(residents, self._target.level), residents)
        return held * max(1.0, spread) + batch.mean * RESERVED_OUTPUT_TOKENS

    def column(self, load_per_s: float) -> Column:
        """The operating point at a load below `most_load_per_s`."""
        batch = self.batch(load_per_s)
        assert batch is not None
        hardware = self._hardware
        return Column(
            config=hardware.config(self._role),
            load_per_s=load_per_s,
            mean_w=self._watts(batch),
            peak_w=hardware.peak_w * hardware.tp,
            ttfet_s=self._until_s(batch, last_turn=0.0),
            tbt_s=self._tbt_s(batch),
            e2e_s=self._until_s(batch, last_turn=1.0),
            busy=_busy(batch),
            batch=batch.mean,
        )

    def _until_s(self, batch: Batch, last_turn: float) -> float:
        """From a conversation's arrival until so much of its last turn is decoded."""
        level, appends = self._target.level, self._appends
        each = mean_wait_s(1, batch.append_busy, appends) + batch.step_s / 2

        def of(work: Work, local_s: float) -> float:
            waits = each * len(work.local) + batch.step_s / 2 * len(work.phase_one)
            steps = work.steps_before_last + last_turn * work.last_steps
            return local_s + waits + steps * batch.token_s + work.gap_s

        works = zip(self._demand.works, self._local_s, strict=True)
        parts = sorted(of(work, local_s) for work, local_s in works)
        longest = wait_quantile_s(1, batch.append_busy, appends, level)
        mean = mean_wait_s(1, batch.append_busy, appends)
        return percentile(parts, level * 100) + max(0.0, longest - mean)

    def _tbt_s(self, batch: Batch) -> float:
        level = self._target.level
        step_s = self._step_s(poisson_quantile(batch.mean, level))
        turn_s = self._last_steps * step_s / (1 - batch.append_busy)
        stalls = batch.load_per_s * self._num_local * turn_s
        spread = poisson_quantile(1.0, level) - 1.0  # the normal quantile
        work_s = stalls * self._appends.mean_s
        work_s += spread * math.sqrt(stalls * self._appends.mean_square_s2)
        return step_s + work_s / self._last_steps

    def _watts(self, batch: Batch) -> float:
        """Mean watts: appends, decode steps of the mean batch, and idling."""
        power, turns = self._hardware.power, max(1.0, batch.mean)
        step_j = power.decode_step_j + turns * (
            power.decode_j_per_request + power.decode_j_per_kv_token * self._context
        )
        busy = _busy(batch)
        watts = batch.append_busy * self._append_w
        watts += (busy - batch.append_busy) * step_j / batch.step_s
        return watts + (1 - busy) * power.idle_w

    @cached_property
    def _append_w(self) -> float:
        parts = [part for work in self._demand.works for part in work.local]
        return _prefill_watts(self._hardware, parts)


def _busy(batch: Batch) -> float:
    """Share of time with anything to do: no turn is there with the probability exp(-mean)."""
    return max(batch.append_busy, 1 - math.exp(-batch.mean - batch.append_busy))


def _prefill_s(hardware: Hardware, part: Part) -> float:
    new, cached = part
    return hardware.perf.prefill(cached, cached + new)


def _prefill_watts(hardware: Hardware, parts: Sequence[Part]) -> float:
    """Watts of a worker over prefills, by time; about 64 of them stand for all."""
    chosen = parts[:: max(1, len(parts) // 64)]
    costs = [hardware.perf.prefill_cost(cached, cached + new) for new, cached in chosen]
    joules = sum(cost.joules for cost in costs)
    return _ratio(joules, sum(cost.seconds for cost in costs)) or hardware.power.idle_w


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


__all__ = ["Batch", "Decoder", "Prefiller", "Service", "Target", "levels"]
