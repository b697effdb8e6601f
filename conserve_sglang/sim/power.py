"""Modelled joules of simulated workers: by phase, and idle apart."""

from collections.abc import Iterable
from dataclasses import dataclass

from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.worker import WorkerSpec
from conserve_sglang.sim.batch import DecodeBatch
from conserve_sglang.sim.perf_model import PowerModel
from conserve_sglang.sim.prefill_batch import PrefillBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnergy:
    """What one worker used, all modelled; `idle_j` is its idle power for the seconds of the window
    in which it did nothing. `has_power`: whether its profile has watts; else all is 0."""

    worker_id: WorkerId
    tier: TierName
    prefill_j: float
    append_prefill_j: float
    decode_j: float
    idle_j: float
    busy_s: float
    has_power: bool

    @property
    def total_j(self) -> float:
        """All of it."""
        return self.prefill_j + self.append_prefill_j + self.decode_j + self.idle_j


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledEnergy:
    """A run's joules, all modelled, over its serving window: first arrival to last token.

    `conversation_j` is over answered conversations, `turn_j` and `output_token_j` over answered
    turns; a counted token is one of a turn's whole input or output, cached ones too (PAPER's
    tokens/J). None where there is none to divide by.
    """

    total_j: float
    prefill_j: float
    append_prefill_j: float
    decode_j: float
    idle_j: float
    mean_w: float | None
    conversation_j: float | None
    turn_j: float | None
    output_token_j: float | None
    counted_token_j: float | None
    counted_tokens_per_j: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What joules are divided by."""

    window_s: float
    num_answered: int
    num_turns: int
    output_tokens: int
    counted_tokens: int


def worker_energy(
    spec: WorkerSpec,
    power: PowerModel | None,
    prefill: PrefillBatch,
    decode: DecodeBatch,
    busy_s: float,
    window_s: float,
) -> WorkerEnergy:
    """A worker's whole account."""
    return WorkerEnergy(
        worker_id=spec.worker_id,
        tier=spec.tier,
        prefill_j=prefill.prefill_j,
        append_prefill_j=prefill.append_j,
        decode_j=decode.decode_j,
        idle_j=power.idle_w * max(0.0, window_s - busy_s) if power else 0.0,
        busy_s=busy_s,
        has_power=power is not None,
    )


def modelled_energy(workers: Iterable[WorkerEnergy], served: Served) -> ModelledEnergy | None:
    """The sum over workers; None if any of them has no power model."""
    workers = tuple(workers)
    if not workers or not all(worker.has_power for worker in workers):
        return None
    total_j = sum(worker.total_j for worker in workers)
    return ModelledEnergy(
        total_j=total_j,
        prefill_j=sum(worker.prefill_j for worker in workers),
        append_prefill_j=sum(worker.append_prefill_j for worker in workers),
        decode_j=sum(worker.decode_j for worker in workers),
        idle_j=sum(worker.idle_j for worker in workers),
        mean_w=_over(total_j, served.window_s),
        conversation_j=_over(total_j, served.num_answered),
        turn_j=_over(total_j, served.num_turns),
        output_token_j=_over(total_j, served.output_tokens),
        counted_token_j=_over(total_j, served.counted_tokens),
        counted_tokens_per_j=_over(served.counted_tokens, total_j),
    )


def _over(amount: float, number: float) -> float | None:
    return amount / number if number > 0 else None
