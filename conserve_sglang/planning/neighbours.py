"""Fleets one move away from a fleet. Pure.

A move: a worker of another role, a worker of another tier, one more, one fewer; all workers of a
tier and role at the next power cap or clock, or with another tensor parallelism; another policy;
all roles in one worker, or apart. One configuration of each tier and role, as in the program.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.demand import Variant
from conserve_sglang.planning.hardware import Hardware
from conserve_sglang.planning.problem import Config
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.variants import policies_for

Counts = Mapping[Config, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A fleet and its policy, one of those that fit the variant."""

    variant: Variant
    policy: PolicyChoice
    counts: Counts

    @property
    def key(self) -> object:
        """Equal for equal choices. Variants differ in what was planned for, not in what runs."""
        return repr(self.policy), frozenset(self.counts.items())


def shortage(request: Request, counts: Counts) -> dict[str, int]:
    """By tier, how many GPUs a fleet needs more than there are; tiers with enough are left out."""
    found: dict[str, int] = {}
    for one in request.limits().gpus:
        used = sum(
            config.tp * count
            for config, count in counts.items()
            if config.tier == one.tier and config.tp >= one.min_tp
        )
        if used > one.gpus:
            found[one.tier] = max(found.get(one.tier, 0), used - one.gpus)
    return found


def num_short(request: Request, counts: Counts) -> int:
    """Of all tiers together."""
    return sum(shortage(request, counts).values())


def shrunk(request: Request, counts: Counts, most_short: int) -> dict[Config, int] | None:
    """A fleet with workers taken out of the tiers that have too few GPUs, each kind in proportion,
    until no more than `most_short` are missing. None if a role would be left without a worker."""
    now = dict(counts)
    while (short := shortage(request, now)) and sum(short.values()) > most_short:
        able = [one for one in now if one.tier in short and _of_role(now, one.role) > 1]
        if not able:
            return None
        largest = max(able, key=lambda one: (now[one] / counts[one], now[one], repr(one)))
        now = _less(now, largest)
    return now


class Neighbours:
    """Moves among the hardware of a request. `is_powered`: watts are limited, so that fewer workers
    and lower caps may be of use."""

    def __init__(self, request: Request, variants: Mapping[str, Variant], is_powered: bool) -> None:
        self._request, self._variants, self._is_powered = request, variants, is_powered
        self._configs: dict[tuple[str, Role], list[Config]] = {}
        peaks = {one.config(role): one for one in request.hardware for role in Role}
        self._quickest = {config: _quickness(one) for config, one in peaks.items()}
        for one in request.hardware:
            for role in Role:
                if request.allows(one, role):
                    self._configs.setdefault((one.tier, role), []).append(one.config(role))

    def of(self, choice: Choice, most_short: int) -> Iterator[Choice]:
        """Each once, the likeliest to be of use first. While more than `most_short` GPUs are
        missing, only those with fewer of them."""
        short = num_short(self._request, choice.counts)
        if short > most_short:
            fleets = [*self._fewer(choice.counts), *self._swapped(choice)]
            fewer = (one for one in fleets if num_short(self._request, one) < short)
            yield from self._different(choice, fewer)
            return
        room = (one for one in self._fleets(choice) if self._is_room(one, most_short))
        yield from self._different(choice, room)
        yield from self._other_policies(choice)
        for other in self._other_roles(choice):
            if self._is_room(other.counts, most_short):
                yield other

    def _other_policies(self, choice: Choice) -> Iterator[Choice]:
        for variant in self._variants.values():
            if variant.roles == choice.variant.roles:
                for policy in policies_for(variant, self._request.targets.tbt_s):
                    if policy != choice.policy:
                        yield Choice(variant=variant, policy=policy, counts=choice.counts)

    def _is_room(self, counts: Counts, most_short: int) -> bool:
        return num_short(self._request, counts) <= most_short

    def _different(self, choice: Choice, fleets: Iterable[dict[Config, int]]) -> Iterator[Choice]:
        seen = {frozenset(choice.counts.items())}
        for fleet in fleets:
            counts = fleet if self._is_powered else self._quickened(fleet)
            key = frozenset(counts.items())
            if key not in seen:
                seen.add(key)
                yield Choice(variant=choice.variant, policy=choice.policy, counts=counts)

    def _quickened(self, counts: Counts) -> dict[Config, int]:
        """Without caps and locked clocks, which nothing asks for where watts are not limited."""
        return {
            max(self._alike(config), key=lambda one: self._quickest[one]): count
            for config, count in counts.items()
        }

    def _alike(self, config: Config) -> list[Config]:
        known = self._configs.get(config.group, [])
        return [one for one in known if one.tp == config.tp]

    def _fleets(self, choice: Choice) -> Iterator[dict[Config, int]]:
        counts = choice.counts
        yield from self._grown(choice)
        yield from self._shifted(choice)
        yield from self._swapped(choice)
        if self._is_powered:
            yield from self._knobs(counts)
            yield from self._fewer(counts)
        else:
            yield dict(counts)
        yield from self._sizes(counts)

    def _grown(self, choice: Choice) -> Iterator[dict[Config, int]]:
        for role in _sorted(choice.variant.roles):
            for tier in self._tiers:
                if (more := self._member(choice.counts, tier, role)) is not None:
                    yield _more(choice.counts, more)

    def _shifted(self, choice: Choice) -> Iterator[dict[Config, int]]:
        """A worker in another role."""
        counts = choice.counts
        for config in counts:
            for role in _sorted(choice.variant.roles - {config.role}):
                other = self._member(counts, config.tier, role, config.tp)
                if other is not None and _of_role(counts, config.role) > 1:
                    yield _more(_less(counts, config), other)

    @property
    def _tiers(self) -> list[str]:
        return sorted({tier for tier, _ in self._configs})

    def _fewer(self, counts: Counts) -> Iterator[dict[Config, int]]:
        for config in counts:
            if _of_role(counts, config.role) > 1:
                yield _less(counts, config)

    def _swapped(self, choice: Choice) -> Iterator[dict[Config, int]]:
        """A worker of a role in another tier."""
        for config in choice.counts:
            for tier in self._tiers:
                other = self._member(choice.counts, tier, config.role)
                if tier != config.tier and other is not None:
                    yield _more(_less(choice.counts, config), other)

    def _member(
        self, counts: Counts, tier: str, role: Role, tp: int | None = None
    ) -> Config | None:
        """The configuration of a tier and role: the one that is used there, else the quickest of
        the smallest size, or of `tp`. None if there is none."""
        for config in counts:
            if config.group == (tier, role):
                return config if tp in (None, config.tp) else None
        known = self._configs.get((tier, role), [])
        size = tp or min((one.tp for one in known), default=1)
        fitting = [one for one in known if one.tp == size]
        return max(fitting, key=lambda one: self._quickest[one], default=None)

    def _knobs(self, counts: Counts) -> Iterator[dict[Config, int]]:
        """The next quicker and the next slower one."""
        for config, count in counts.items():
            known = sorted(self._alike(config), key=lambda one: self._quickest[one])
            at = known.index(config)
            for other in (*known[at + 1 : at + 2], *known[max(0, at - 1) : at]):
                yield _replaced(counts, config, other, count)

    def _sizes(self, counts: Counts) -> Iterator[dict[Config, int]]:
        """Workers of more GPUs, and of fewer."""
        for config, count in counts.items():
            known = self._configs.get(config.group, [])
            for tp in sorted({one.tp for one in known} - {config.tp}):
                fitting = [one for one in known if one.tp == tp]
                other = max(fitting, key=lambda one: self._quickest[one])
                if num := count * config.tp // tp:
                    yield _replaced(counts, config, other, num)

    def _other_roles(self, choice: Choice) -> Iterator[Choice]:
        """The same tiers' GPUs in all the roles at once, or in roles apart: a third, rounded,
        prefills."""
        gpus: dict[str, int] = {}
        for config, count in choice.counts.items():
            gpus[config.tier] = gpus.get(config.tier, 0) + config.tp * count
        for variant in self._variants.values():
            if variant.roles == choice.variant.roles:
                continue
            counts: dict[Config, int] = {}
            for tier, num in gpus.items():
                for role, share in _shares(variant.roles, num).items():
                    member = self._member({}, tier, role)
                    if member is not None and share >= member.tp:
                        counts[member] = share // member.tp
            if {config.role for config in counts} == variant.roles:
                yield Choice(variant=variant, policy=variant.policy, counts=counts)


def _quickness(hardware: Hardware) -> tuple[float, float, float]:
    """As delivered is quickest, then the highest clock, then the highest cap."""
    cap, clock = hardware.power_cap_w, hardware.sm_clock_mhz
    infinity = float("inf")
    return (
        infinity if clock is None else clock,
        infinity if cap is None else cap,
        hardware.peak_w,
    )


def _shares(roles: frozenset[Role], num: int) -> dict[Role, int]:
    if Role.MIXED in roles:
        return {Role.MIXED: num}
    prefill = max(round(num / 3), min(1, num - 1))
    return {Role.PREFILL: prefill, Role.DECODE: num - prefill}


def _sorted(roles: Iterable[Role]) -> list[Role]:
    return sorted(roles, key=lambda role: role.value)


def _of_role(counts: Counts, role: Role) -> int:
    return sum(count for config, count in counts.items() if config.role is role)


def _more(counts: Counts, config: Config) -> dict[Config, int]:
    return {**counts, config: counts.get(config, 0) + 1}


def _less(counts: Counts, config: Config) -> dict[Config, int]:
    fewer = {one: count - (one == config) for one, count in counts.items()}
    return {one: count for one, count in fewer.items() if count}


def _replaced(counts: Counts, config: Config, other: Config, count: int) -> dict[Config, int]:
    return {
        (other if one == config else one): (count if one == config else num)
        for one, num in counts.items()
    }
