"""How far a simulation went beyond the points its unit costs come from.

Beyond them the closed forms go on: a decode step stays affine, a prefill grows with the square of
its length, an append's floor goes on as a line. Nothing says that a GPU does so.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from conserve_sglang.sim.perf_model import PerfModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """Something that a tier's workers did beyond the points of their profile.

    `reached` of `what`, where the points end at `known`; that was so in `share` of the `events`
    (decode steps, prefills, append prefills).
    """

    tier: str
    profile: str
    what: str
    reached: int
    known: int
    share: float
    events: str

    @property
    def factor(self) -> float:
        """How many times as far as the points go; infinite where there are none."""
        return self.reached / self.known if self.known else math.inf

    @property
    def text(self) -> str:
        """In words."""
        far = f" end at {self.known:,} ({self.factor:.3g} x as far; "
        far = far if self.known else " tell nothing of it ("
        return (
            f"tier {self.tier}: {self.what} up to {self.reached:,}, the points of profile"
            f" {self.profile}{far}{self._often} of the {self.events}): extrapolated"
        )

    @property
    def _often(self) -> str:
        return "less than 0.1%" if self.share < 0.001 else f"{self.share:.1%}"


class Reach:
    """What one worker's unit costs were asked for: the most there was of each quantity, and how
    many events were beyond the points."""

    __slots__ = ("batch", "batch_beyond", "context", "contexts_beyond", "kv_beyond", "kv_tokens",
                 "num_appends", "num_prefills", "num_steps", "perf", "prompt", "prompts_beyond",
                 "tier")  # fmt: skip

    def __init__(self, perf: PerfModel, tier: str) -> None:
        self.perf, self.tier = perf, tier
        self.batch = self.kv_tokens = self.prompt = self.context = 0
        self.batch_beyond = self.kv_beyond = self.prompts_beyond = self.contexts_beyond = 0
        self.num_steps = self.num_prefills = self.num_appends = 0

    def decoded(self, batch: int, kv_tokens: int, num_steps: int) -> None:
        """Steps of a batch that held `kv_tokens` at the first, and `batch` more at each next."""
        perf = self.perf
        self.num_steps += num_steps
        last_kv = kv_tokens + batch * (num_steps - 1)
        if batch > self.batch:  # noqa: PLR1730 - no call, as often as this runs
            self.batch = batch
        if last_kv > self.kv_tokens:  # noqa: PLR1730 - no call, as often as this runs
            self.kv_tokens = last_kv
        if batch > perf.most_batch:
            self.batch_beyond += num_steps
        if last_kv > perf.most_kv_tokens:
            first = int(perf.most_kv_tokens - kv_tokens) // batch + 1
            self.kv_beyond += num_steps - max(0, first)

    def prefilled(self, cached_tokens: int, tokens: int) -> None:
        """A prompt of `tokens`, of which the first `cached_tokens` were there."""
        perf = self.perf
        self.num_prefills += 1
        if tokens > self.prompt:  # noqa: PLR1730 - no call, as often as this runs
            self.prompt = tokens
        if tokens > perf.prefill_tokens[-1]:
            self.prompts_beyond += 1
        if cached_tokens > 0:
            self.num_appends += 1
            if tokens > self.context:  # noqa: PLR1730 - no call, as often as this runs
                self.context = tokens
            if tokens > perf.most_append_tokens:
                self.contexts_beyond += 1

    def add(self, other: "Reach") -> None:
        """Count another worker's in."""
        for name in ("batch", "kv_tokens", "prompt", "context"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for name in ("batch_beyond", "kv_beyond", "prompts_beyond", "contexts_beyond",
                     "num_steps", "num_prefills", "num_appends"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def beyond(self) -> tuple[Beyond, ...]:
        """What went beyond the points, if anything did."""
        perf, kv = self.perf, "KV tokens in the decode batch"
        steps = (self.num_steps, "decode steps")
        prefills, appends = (self.num_prefills, "prefills"), (self.num_appends, "append prefills")
        rows = (
            ("decode batch", self.batch, perf.most_batch, self.batch_beyond, steps),
            (kv, self.kv_tokens, perf.most_kv_tokens, self.kv_beyond, steps),
            ("prompt tokens", self.prompt, perf.prefill_tokens[-1], self.prompts_beyond, prefills),
            ("context of an append", self.context, perf.most_append_tokens, self.contexts_beyond,
             appends),
        )  # fmt: skip
        return tuple(
            Beyond(
                tier=self.tier,
                profile=perf.name,
                what=what,
                reached=most,
                known=int(known),
                share=num_beyond / num,
                events=events,
            )
            for what, most, known, num_beyond, (num, events) in rows
            if num_beyond
        )


class HasReach(Protocol):
    """A worker that keeps account."""

    reach: Reach


def beyond_points(workers: Iterable[HasReach]) -> tuple[Beyond, ...]:
    """What workers have done so far beyond their profiles' points, tier by tier."""
    found: dict[tuple[str, str], Reach] = {}
    for reach in (worker.reach for worker in workers):
        whole = found.setdefault((reach.tier, reach.perf.name), Reach(reach.perf, reach.tier))
        whole.add(reach)
    return tuple(one for reach in found.values() for one in reach.beyond())
