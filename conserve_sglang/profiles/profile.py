"""What one GPU takes, in seconds and watts, to serve one model: points, and what lies between.

Every profile says how its numbers came about; times and watts may have come about differently.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from conserve_sglang.core.errors import OutsideProfile, ProfileError
from conserve_sglang.profiles.grid import Coordinates, LeftOut, Outside, Row, grid_of, leave_one_out

SCHEMA_VERSION = 2
"""The newest form of profile files. 2 added request and handoff points, and what a first handoff
takes; without any of these, a file is written as 1, which earlier releases read."""

ProvenanceKind = Literal["measured", "published", "estimated"]
GraphMode = Literal["eager", "cuda-graph", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where numbers come from.

    `source` names the publication, or the method that measured or estimated them; `machine` the
    facts of the machine they hold for; `error` what is known of how wrong they may be.
    """

    kind: ProvenanceKind
    source: str
    date: str | None = None
    machine: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPoint:
    """Prefill of `batch` prompts together, each with `new_tokens` to compute after
    `cached_tokens` whose KV is there. `watts`: one device's mean draw meanwhile. `rel_ci`: half
    the width of the time's 95 % confidence interval over the time."""

    new_tokens: int
    seconds: float
    cached_tokens: int = 0
    batch: int = 1
    watts: float | None = None
    rel_ci: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePoint:
    """One decode step of `batch` requests whose contexts hold `kv_tokens` in all."""

    batch: int
    kv_tokens: int
    step_s: float
    watts: float | None = None
    rel_ci: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPoint:
    """Moving the KV of `tokens` from a prefiller to a decoder over a link of their own."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """What the first token of a lone turn with a prompt of `tokens` takes beyond its prefill.

    Of a request point one worker serves the turn: HTTP, tokens, and the way in and out of its
    scheduler. Of a handoff point a prefiller and a decoder do: besides these, the meeting of the
    two, the KV's move, and until its arrival is seen. `rel_ci`: as of a `PrefillPoint`."""

    tokens: int
    seconds: float
    rel_ci: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How well a profile's own points are told from the others; None where it has none."""

    prefill: LeftOut | None
    prefill_watts: LeftOut | None
    decode: LeftOut | None
    decode_watts: LeftOut | None
    transfer: LeftOut | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Times in seconds, power in watts of one device (not of `tp` together), lengths in tokens.

    `gpu` is the product name ("A40") or "cpu"; `model` the hub name. `power_cap_w` and
    `sm_clock_mhz` are the knobs it holds for, None: as delivered. `tdp_w` is the device's rated
    power, `idle_w` what it draws with a server loaded that has nothing to do.
    `kv_capacity_tokens` is how many KV tokens such a server held or would hold; `chunk_tokens` the
    most it prefills in a step. `provenance` speaks of the times, `power_provenance` of the watts.
    Without `request` or `handoff` points, what these take is not known. `first_handoff_s` is what
    the first handoff of a prefiller and a decoder takes beyond a later one, once in the lives of
    both: they get to know each other. None: not known.
    """

    name: str
    gpu: str
    model: str
    dtype: str
    engine: str
    engine_version: str
    graph_mode: GraphMode
    provenance: Provenance
    prefill: tuple[PrefillPoint, ...]
    decode: tuple[DecodePoint, ...]
    transfer: tuple[TransferPoint, ...] = ()
    request: tuple[FrontPoint, ...] = ()
    handoff: tuple[FrontPoint, ...] = ()
    tp: int = 1
    power_cap_w: float | None = None
    sm_clock_mhz: int | None = None
    tdp_w: float | None = None
    idle_w: float | None = None
    kv_bytes_per_token: int | None = None
    kv_capacity_tokens: int | None = None
    chunk_tokens: int | None = None
    first_handoff_s: float | None = None
    power_provenance: Provenance | None = None

    @property
    def schema_version(self) -> int:
        """The least version of the file format that can hold it."""
        has_first = self.first_handoff_s is not None
        return 2 if self.request or self.handoff or has_first else 1

    @property
    def is_estimated(self) -> bool:
        """Whether its times or watts are estimates, which must be said where they are shown."""
        kinds = {self.provenance.kind}
        if self.power_provenance is not None:
            kinds.add(self.power_provenance.kind)
        return "estimated" in kinds

    @property
    def has_watts(self) -> bool:
        """Whether power is known for both phases."""
        return self._prefill_w is not None and self._decode_w is not None

    def prefill_s(
        self, new: int, cached: int = 0, batch: int = 1, *, extrapolate: bool = False
    ) -> float:
        """Seconds to prefill `batch` prompts of `new` tokens each after `cached` cached ones.
        Raises `OutsideProfile` beyond the points."""
        return self._told("prefill", self._prefill_s, (batch, cached, new), extrapolate)

    def prefill_w(
        self, new: int, cached: int = 0, batch: int = 1, *, extrapolate: bool = False
    ) -> float | None:
        """Watts of one device meanwhile; None if the profile has none. Raises `OutsideProfile`."""
        if self._prefill_w is None:
            return None
        return self._told("prefill", self._prefill_w, (batch, cached, new), extrapolate)

    def decode_step_s(self, batch: int, kv_tokens: int, *, extrapolate: bool = False) -> float:
        """Seconds of one decode step; `kv_tokens` is the sum over the batch. Raises
        `OutsideProfile` beyond the points."""
        return self._told("decode", self._decode_s, (batch, kv_tokens / batch), extrapolate)

    def decode_w(self, batch: int, kv_tokens: int, *, extrapolate: bool = False) -> float | None:
        """Watts of one device meanwhile; None if the profile has none. Raises `OutsideProfile`."""
        if self._decode_w is None:
            return None
        return self._told("decode", self._decode_w, (batch, kv_tokens / batch), extrapolate)

    def transfer_s(self, tokens: int, *, extrapolate: bool = False) -> float:
        """Seconds to move the KV of `tokens`. Raises `OutsideProfile` beyond the points."""
        return self._told("transfer", self._transfer_s, (tokens,), extrapolate)

    def leave_one_out(self) -> Accuracy:
        """Each point told from the others: what interpolation between points is worth."""

        def report(points: Mapping[Coordinates, float]) -> LeftOut | None:
            return leave_one_out(points) if points else None

        return Accuracy(
            prefill=report({_at(p): p.seconds for p in self.prefill}),
            prefill_watts=report({_at(p): p.watts for p in self.prefill if p.watts is not None}),
            decode=report({_at(p): p.step_s for p in self.decode}),
            decode_watts=report({_at(p): p.watts for p in self.decode if p.watts is not None}),
            transfer=report({_at(p): p.seconds for p in self.transfer}),
        )

    @cached_property
    def _prefill_s(self) -> Row | None:
        return grid_of((_at(p), p.seconds) for p in self.prefill)

    @cached_property
    def _prefill_w(self) -> Row | None:
        return grid_of((_at(p), p.watts) for p in self.prefill if p.watts is not None)

    @cached_property
    def _decode_s(self) -> Row | None:
        return grid_of((_at(p), p.step_s) for p in self.decode)

    @cached_property
    def _decode_w(self) -> Row | None:
        return grid_of((_at(p), p.watts) for p in self.decode if p.watts is not None)

    @cached_property
    def _transfer_s(self) -> Row | None:
        return grid_of((_at(p), p.seconds) for p in self.transfer)

    def _told(self, kind: str, grid: Row | None, at: Coordinates, extrapolate: bool) -> float:
        if grid is None:
            raise ProfileError(f"profile {self.name} has no {kind} points: measure some")
        try:
            return grid.at(at, extrapolate=extrapolate)
        except Outside as outside:
            raise OutsideProfile(
                f"profile {self.name}, {kind}: {_AXES[kind][outside.axis]} {outside.value:g} is"
                f" outside {outside.least:g} to {outside.most:g}, where it has points"
                f"{_also(kind, at, outside.axis)}; measure more points, or ask for extrapolation"
            ) from None


_AXES = {
    "prefill": ("batch", "cached tokens", "new tokens"),
    "decode": ("batch", "KV tokens per request"),
    "transfer": ("tokens",),
}


def _also(kind: str, at: Coordinates, axis: int) -> str:
    before = zip(_AXES[kind][:axis], at[:axis], strict=True)
    return "".join(f", near {name} {value:g}" for name, value in before)


def _at(point: PrefillPoint | DecodePoint | TransferPoint) -> Coordinates:
    """Where a point lies in its grid."""
    if isinstance(point, PrefillPoint):
        return (point.batch, point.cached_tokens, point.new_tokens)
    if isinstance(point, DecodePoint):
        return (point.batch, point.kv_tokens / point.batch)
    return (point.tokens,)
