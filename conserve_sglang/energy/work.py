"""Batches of a phase log as work to be paid for: weights, and with a profile the energy predicted.

A batch's time was observed, so of a profile only the watts are used: predicted joules are the
profile's power for that batch times the seconds it took. Weights within a batch are

    extend    with a profile the time it gives for each request alone, else each one's new tokens
    decode    each one's new tokens, times, with a profile, an equal share of the step's time for
              weights and launch plus the step's time per KV token times its context

Beyond its points a profile is extrapolated; `Predictor.num_outside` counts how often.
"""

from collections.abc import Callable
from math import fsum
from typing import TypeVar

from conserve_sglang.core.errors import OutsideProfile
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.phase_log import Batch, Phase, Work
from conserve_sglang.power.attribution import Part, Span
from conserve_sglang.profiles import Profile

_Told = TypeVar("_Told", float, float | None)


class Predictor:
    """What a profile says of batches."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.num_outside = 0

    @property
    def has_watts(self) -> bool:
        """Whether energy can be predicted, and not only time."""
        return self.profile.has_watts

    def joules(self, batch: Batch) -> float | None:
        """Of one device over the whole batch; None where the profile has no watts."""
        works = batch.works
        if not works or not self.has_watts:
            return None
        seconds = batch.end_s - batch.start_s
        if works[0].phase is Phase.DECODE:
            size, kv = mean_batch(batch)
            watts = self._at(lambda x: self.profile.decode_w(size, kv, extrapolate=x))
        else:
            new = max(1, round(sum(work.new_tokens for work in works) / len(works)))
            held = round(sum(work.held_tokens for work in works) / len(works))
            watts = self._at(lambda x: self.profile.prefill_w(new, held, len(works), extrapolate=x))
        return None if watts is None else max(0.0, watts) * seconds

    def weights(self, batch: Batch) -> list[float]:
        """Each work's share of the batch, in seconds; all are positive."""
        if batch.works[0].phase is not Phase.DECODE:
            return [max(1e-9, self._alone_s(work)) for work in batch.works]
        size, kv = mean_batch(batch)
        step_s = self._step_s(size, kv)
        # Step times are affine in KV tokens: what more of them cost, seen around this batch.
        per_token_s = max(0.0, (step_s - self._step_s(size, kv // 2)) / max(1, kv - kv // 2))
        fixed_s = max(0.0, step_s - per_token_s * kv) / size
        return [
            max(1e-9, work.new_tokens * (fixed_s + per_token_s * work.held_tokens))
            for work in batch.works
        ]

    def _alone_s(self, work: Work) -> float:
        new = max(1, work.new_tokens)
        return self._at(lambda x: self.profile.prefill_s(new, work.held_tokens, extrapolate=x))

    def _step_s(self, size: int, kv_tokens: int) -> float:
        return self._at(lambda x: self.profile.decode_step_s(size, kv_tokens, extrapolate=x))

    def _at(self, look: Callable[[bool], _Told]) -> _Told:
        try:
            return look(False)
        except OutsideProfile:
            self.num_outside += 1
            return look(True)


def mean_batch(batch: Batch) -> tuple[int, int]:
    """Requests and KV tokens of the mean step of a run of decode steps."""
    steps = max(1, batch.steps)
    size = max(1, round(sum(work.new_tokens for work in batch.works) / steps))
    kv = round(fsum(work.new_tokens * work.held_tokens for work in batch.works) / steps)
    return size, max(kv, size)


def span_of(worker: WorkerId, batch: Batch, predictor: Predictor | None) -> Span:
    """A batch as a span of its worker."""
    works = batch.works
    if not works:
        weights: list[float] = []
    elif predictor is None:
        weights = [float(max(1, work.new_tokens)) for work in works]
    else:
        weights = predictor.weights(batch)
    parts = tuple(
        Part(work.conversation, work.turn, work.phase, weight)
        for work, weight in zip(works, weights, strict=True)
    )
    joules = None if predictor is None else predictor.joules(batch)
    return Span(worker, batch.start_s, batch.end_s, parts, joules)
