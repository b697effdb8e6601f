"""How long the parts of a turn take on one kind of worker, and what they draw: a profile in closed
form.

A decode step is affine in the batch's requests and KV tokens, in seconds and in joules, which is
what lets a worker advance many steps at once. All times in seconds.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple


class Cost(NamedTuple):
    """Seconds and joules of some work."""

    seconds: float
    joules: float


class Piece(NamedTuple):
    """A straight piece of a table: from where, how many tokens of it make it grow by `more_s` and
    `more_j`, and what it is at its beginning."""

    low_tokens: int
    span_tokens: int
    low_s: float
    more_s: float
    low_j: float
    more_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerModel:
    """Joules of one worker, all of its GPUs together; modelled, whatever they come from.

    A decode step takes `decode_step_j` + `decode_j_per_request` x batch + `decode_j_per_kv_token`
    x KV tokens. `prefill_j` and `append_floor_j` stand for the lengths of the `PerfModel`'s
    tables. `idle_w`: watts while there is nothing to do. `most_w`: what no step draws more than,
    whatever the closed form says beyond the points it comes from.
    """

    idle_w: float
    decode_step_j: float
    decode_j_per_request: float
    decode_j_per_kv_token: float
    prefill_j: tuple[float, ...]
    append_floor_j: tuple[float, ...]
    most_w: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class PerfModel:
    """Unit costs. `sources` names where each comes from, `errors` how far the closed form is off
    the profile's points (median of relative errors).

    `prefill_tokens` and `prefill_s`: seconds to prefill a prompt of which nothing is cached;
    linear between points, beyond the last one growing with the square of the length.
    `append_tokens` and `append_floor_s`: the least that anything costs on top of a cached prefix,
    by the length of the context; `append_share` is how much of the lesser of that and of what the
    new tokens add comes on top of the greater. `transfer_tokens` and `transfer_times_s`: moving
    KV; of that, the time of the first point keeps no link busy. `request_tokens` and
    `request_times_s`: the first token of a turn beyond its prefill, by the prompt's length;
    `handoff_tokens` and `handoff_times_s`: through a prefiller and a decoder, beyond that and the
    move; `first_handoff_s`: the first one of a pair, beyond that. `unknown`: which of these the
    profile does not tell; they count as 0. `most_batch`,
    `most_kv_tokens`: up to where a decode step comes from points; `most_append_tokens`: the same
    of the context of an append. Infinite: not told.
    """

    name: str
    decode_step_s: float
    decode_s_per_request: float
    decode_s_per_kv_token: float
    prefill_tokens: tuple[int, ...]
    prefill_s: tuple[float, ...]
    append_tokens: tuple[int, ...]
    append_floor_s: tuple[float, ...]
    append_share: float
    transfer_tokens: tuple[int, ...]
    transfer_times_s: tuple[float, ...]
    request_tokens: tuple[int, ...] = (1,)
    request_times_s: tuple[float, ...] = (0.0,)
    handoff_tokens: tuple[int, ...] = (1,)
    handoff_times_s: tuple[float, ...] = (0.0,)
    first_handoff_s: float = 0.0
    unknown: tuple[str, ...] = ()
    most_batch: float = math.inf
    most_kv_tokens: float = math.inf
    most_append_tokens: float = math.inf
    power: PowerModel | None = None
    is_estimated: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    _prefill: tuple[Piece, ...] = field(init=False, repr=False, compare=False)
    _append: tuple[Piece, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tables = {
            "prefill": (self.prefill_tokens, self.prefill_s),
            "append": (self.append_tokens, self.append_floor_s),
            "transfer": (self.transfer_tokens, self.transfer_times_s),
            "request": (self.request_tokens, self.request_times_s),
            "handoff": (self.handoff_tokens, self.handoff_times_s),
        }
        for what, (lengths, values) in tables.items():
            if len(lengths) != len(values) or not lengths:
                raise ValueError(f"{self.name}: {what} needs a time for each length")
            if any(later <= earlier for earlier, later in pairwise(lengths)):
                raise ValueError(f"{self.name}: {what} lengths must ascend")
        if any(later < earlier for earlier, later in pairwise(self.prefill_s)):
            raise ValueError(f"{self.name}: prefill times must not fall")
        prefill_j = self.power.prefill_j if self.power else (0.0,) * len(self.prefill_s)
        append_j = self.power.append_floor_j if self.power else (0.0,) * len(self.append_floor_s)
        prefill = _pieces(self.prefill_tokens, self.prefill_s, prefill_j)
        append = _pieces(self.append_tokens, self.append_floor_s, append_j)
        object.__setattr__(self, "_prefill", prefill)
        object.__setattr__(self, "_append", append)

    def decode_step(self, num_requests: int, kv_tokens: int) -> float:
        """One step of a batch that holds `kv_tokens` in all."""
        return (
            self.decode_step_s
            + self.decode_s_per_request * num_requests
            + self.decode_s_per_kv_token * kv_tokens
        )

    def whole_prefill(self, tokens: int) -> float:
        """Prefill of the first `tokens` of a prompt, nothing cached."""
        if tokens <= 0:
            return 0.0
        lengths = self.prefill_tokens
        if tokens >= lengths[-1]:
            return self.prefill_s[-1] * (tokens / lengths[-1]) ** 2
        low, span, low_s, more_s, _, _ = self._prefill[bisect_right(lengths, tokens)]
        return low_s + (tokens - low) / span * more_s

    def append_floor(self, context_tokens: int) -> float:
        """The least that prefilling anything on top of a cached prefix costs."""
        if context_tokens <= self.append_tokens[0]:
            return self.append_floor_s[0]
        return _line(self.append_tokens, self.append_floor_s, context_tokens)

    def prefill(self, cached_tokens: int, tokens: int) -> float:
        """Prefill of a prompt's tokens from `cached_tokens` up to `tokens`.

        From the two things that were measured, a prefix hit and what these tokens add to an
        uncached prefill: never less than the greater.
        """
        added = self.whole_prefill(tokens) - self.whole_prefill(cached_tokens)
        if cached_tokens <= 0:
            return added
        return _joined(added, self.append_floor(tokens), self.append_share)

    def prefill_cost(self, cached_tokens: int, tokens: int) -> Cost:
        """The same with its joules, 0 where power is not known."""
        power = self.power
        if power is None:
            return Cost(self.prefill(cached_tokens, tokens), 0.0)
        seconds, joules = self._whole_cost(tokens, power)
        if cached_tokens > 0:
            before_s, before_j = self._whole_cost(cached_tokens, power)
            least_s, least_j = _at(self._append, self.append_tokens, tokens)
            seconds = _joined(seconds - before_s, least_s, self.append_share)
            joules = _joined(joules - before_j, least_j, self.append_share)
        return Cost(seconds, joules)

    def _whole_cost(self, tokens: int, power: PowerModel) -> tuple[float, float]:
        """`whole_prefill` in seconds and joules, the table looked at once."""
        if tokens <= 0:
            return 0.0, 0.0
        lengths = self.prefill_tokens
        if tokens >= lengths[-1]:
            factor = (tokens / lengths[-1]) ** 2
            return self.prefill_s[-1] * factor, power.prefill_j[-1] * factor
        return _at(self._prefill, lengths, tokens)

    def prefill_batch(self, costs: Sequence[float]) -> float:
        """One prefill step over parts of several prompts, from what each would cost by itself:
        what a step costs at least is paid once. (Assumed; only lone prompts were measured.)"""
        if len(costs) == 1:
            return costs[0]
        fixed = self.append_floor_s[0]
        beyond = sum(cost - fixed for cost in costs if cost > fixed)
        return beyond + min(fixed, max(costs))

    def transfer_occupancy(self, tokens: int) -> float:
        """How long moving KV keeps a link busy."""
        whole = _line(self.transfer_tokens, self.transfer_times_s, tokens)
        return max(0.0, whole - self.transfer_times_s[0])

    def transfer_latency(self, tokens: int) -> float:
        """What a move costs beside that, whether or not others share the link."""
        return self.transfer_times_s[0]

    def transfer_s(self, tokens: int) -> float:
        """Moving KV over a link that nobody else uses."""
        return self.transfer_occupancy(tokens) + self.transfer_latency(tokens)

    def request_s(self, prompt_tokens: int) -> float:
        """What a turn takes beside its worker's steps, on its way in."""
        return max(0.0, _line(self.request_tokens, self.request_times_s, prompt_tokens))

    def handoff_s(self, prompt_tokens: int) -> float:
        """What a turn through a prefiller and a decoder takes beside that and its KV's move.

        Charged after the move, although its handshake precedes the prefill: a queue hides none of
        it."""
        return max(0.0, _line(self.handoff_tokens, self.handoff_times_s, prompt_tokens))


def _pieces(
    lengths: Sequence[int], seconds: Sequence[float], joules: Sequence[float]
) -> tuple[Piece, ...]:
    """One before each length, flat for the first, and one more that goes on beyond the last."""
    points = list(zip(lengths, seconds, joules, strict=True))
    pieces = [Piece(0, 1, seconds[0], 0.0, joules[0], 0.0)]
    for (low, low_s, low_j), (high, high_s, high_j) in pairwise(points):
        pieces.append(Piece(low, high - low, low_s, high_s - low_s, low_j, high_j - low_j))
    return (*pieces, pieces[-1])


def _at(pieces: Sequence[Piece], lengths: Sequence[int], tokens: int) -> tuple[float, float]:
    low, span, low_s, more_s, low_j, more_j = pieces[bisect_right(lengths, tokens)]
    share = (tokens - low) / span
    return low_s + share * more_s, low_j + share * more_j


def _line(lengths: Sequence[int], values: Sequence[float], tokens: int) -> float:
    """Straight between points, flat before the first, and on as it went beyond the last."""
    if tokens < lengths[0] or len(lengths) == 1:
        return values[0]
    right = min(bisect_right(lengths, tokens), len(lengths) - 1)
    low, start = lengths[right - 1], values[right - 1]
    return start + (tokens - low) * (values[right] - start) / (lengths[right] - low)


def _joined(one: float, other: float, share: float) -> float:
    return one + share * other if one > other else other + share * one


def run_length(num_steps: int, first_step_s: float, growth_s: float) -> float:
    """Seconds of `num_steps` decode steps, each `growth_s` longer than the one before."""
    return num_steps * (first_step_s + growth_s * (num_steps - 1) / 2)


def steps_until(seconds: float, first_step_s: float, growth_s: float) -> int:
    """The fewest decode steps, each `growth_s` longer than the one before, that last at least
    `seconds`; at least 1."""
    if seconds <= first_step_s:
        return 1
    if growth_s == 0:
        return math.ceil(seconds / first_step_s)
    b = first_step_s - growth_s / 2
    steps = max(1, math.ceil((math.sqrt(b * b + 2 * growth_s * seconds) - b) / growth_s))
    while steps > 1 and run_length(steps - 1, first_step_s, growth_s) >= seconds:
        steps -= 1
    while run_length(steps, first_step_s, growth_s) < seconds:
        steps += 1
    return steps
