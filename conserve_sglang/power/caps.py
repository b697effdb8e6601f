"""What of a tier map is to be set on which GPU, and what forbids it. Pure.

A plan with problems is not to be carried out. What is out of range is refused, never clamped, and
no limit is raised above what was found unless that is asked for. Watts and MHz.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from conserve_sglang.core.tier import Tier, TierMap

_NEAR = 3  # how many supported clocks an error names


class Knob(Enum):
    """What can be set on a GPU."""

    POWER_CAP = "power cap"
    SM_CLOCK = "SM clock"

    @property
    def unit(self) -> str:
        """The unit of its values."""
        return "W" if self is Knob.POWER_CAP else "MHz"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """A GPU as its driver tells it.

    `cap_w` and its range are None on a GPU without a power limit. `sm_clocks_mhz` are those it
    supports, `reach_mhz` the highest it may use now: less than the highest supported means that
    its clocks are locked already.
    """

    uuid: str
    index: int
    name: str
    is_mig: bool = False
    cap_w: float | None = None
    least_w: float | None = None
    most_w: float | None = None
    sm_clocks_mhz: tuple[int, ...] = ()
    reach_mhz: int | None = None

    @property
    def is_locked(self) -> bool:
        """Whether somebody has locked its clocks, as far as can be seen."""
        if not self.sm_clocks_mhz or self.reach_mhz is None:
            return False
        return self.reach_mhz < max(self.sm_clocks_mhz)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a tier map asks for on one GPU of a host; None leaves a knob as it is.

    `tiers` are all that use the GPU. A wish for neither knob is to have the GPU in hand, for a
    controller.
    """

    host: str
    index: int
    tiers: tuple[str, ...]
    power_cap_w: float | None = None
    sm_clock_mhz: int | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One write: `before` is what was found, None for clocks, which NVML does not tell."""

    uuid: str
    index: int
    knob: Knob
    before: float | None
    after: float

    def __str__(self) -> str:
        unit = self.knob.unit
        found = "" if self.before is None else f"{self.before:g} -> "
        return f"GPU {self.index} ({self.uuid}): {self.knob.value} {found}{self.after:g} {unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapPlan:
    """What would be written, in order; `problems` forbid it, `notices` should be read."""

    changes: tuple[Change, ...]
    problems: tuple[str, ...]
    notices: tuple[str, ...]


def wishes(
    tier_map: TierMap, is_here: Callable[[str], bool], *, for_control: bool = False
) -> tuple[Wish, ...]:
    """What the tier map asks for on the hosts that `is_here` names, by host and GPU index.

    `for_control` has all its GPUs, else those with a cap or a clock. Never a GPU it does not name.
    """
    users: dict[tuple[str, int], list[Tier]] = {}
    for tier in tier_map.tiers:
        if is_here(tier.host):
            for index in dict.fromkeys(tier.gpu_ids):
                users.setdefault((tier.host, index), []).append(tier)
    found = [_wish(host, index, tiers) for (host, index), tiers in sorted(users.items())]
    return tuple(
        wish
        for wish in found
        if for_control or wish.power_cap_w is not None or wish.sm_clock_mhz is not None
    )


def plan_caps(
    asked: Sequence[Wish], gpus: Mapping[int, GpuState], *, allow_raise: bool = False
) -> CapPlan:
    """Compare wishes for one host with its GPUs, by index. What is in force already is left out."""
    changes: list[Change] = []
    problems = list(_twice(asked))
    notices: list[str] = []
    for wish in asked:
        problems.extend(wish.problems)
        gpu = gpus.get(wish.index)
        if gpu is None:
            known = ", ".join(str(index) for index in sorted(gpus)) or "none"
            problems.append(f"{_of(wish)}: there is no GPU {wish.index} here; there are: {known}")
            continue
        found = [*_gpu_problems(wish, gpu), *_cap_problems(wish, gpu, allow_raise=allow_raise)]
        found += _clock_problems(wish, gpu)
        problems.extend(found)
        notices.extend(_notices(wish, gpu))
        if not found:
            changes.extend(_changes(wish, gpu))
    return CapPlan(changes=tuple(changes), problems=tuple(problems), notices=tuple(notices))


def _wish(host: str, index: int, tiers: Sequence[Tier]) -> Wish:
    names = tuple(str(tier.name) for tier in tiers)
    caps = {tier.power_cap_w for tier in tiers if tier.power_cap_w is not None}
    clocks = {tier.sm_clock_mhz for tier in tiers if tier.sm_clock_mhz is not None}
    problems = [
        f"GPU {index} of {host}: tiers {' and '.join(names)} share it and ask for different"
        f" {field}: {', '.join(f'{value:g}' for value in sorted(values))}; make them equal"
        for field, values in (("power_cap_w", caps), ("sm_clock_mhz", clocks))
        if len(values) > 1
    ]
    problems += [
        f"tiers {tier.name}: env.CUDA_DEVICE_ORDER: {order} numbers GPUs otherwise than the driver,"
        " so gpu_ids do not say which GPU to cap; remove it"
        for tier in tiers
        if (order := tier.env.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")) != "PCI_BUS_ID"
    ]
    return Wish(
        host=host,
        index=index,
        tiers=names,
        power_cap_w=min(caps, default=None),
        sm_clock_mhz=min(clocks, default=None),
        problems=tuple(problems),
    )


def _twice(asked: Sequence[Wish]) -> Iterator[str]:
    """One machine under two names, with one GPU under both."""
    first: dict[int, Wish] = {}
    for wish in asked:
        other = first.setdefault(wish.index, wish)
        if other is not wish:
            yield (
                f"{_of(wish)}: GPU {wish.index} is named by {_of(other)} too, under another name"
                f" of this machine ({other.host}, {wish.host}); write one host in both"
            )


def _of(wish: Wish) -> str:
    return f"tier {'/'.join(wish.tiers)}"


def _gpu_problems(wish: Wish, gpu: GpuState) -> Iterator[str]:
    if gpu.is_mig:
        yield (
            f"{_of(wish)}: GPU {gpu.index} ({gpu.uuid}) is split by MIG: a cap or clock would"
            " change all its instances, other users' too; it is not touched"
        )


def _cap_problems(wish: Wish, gpu: GpuState, *, allow_raise: bool) -> Iterator[str]:
    cap = wish.power_cap_w
    if gpu.cap_w is None or gpu.least_w is None or gpu.most_w is None:
        if cap is not None or wish.sm_clock_mhz is None:
            yield f"{_of(wish)}: GPU {gpu.index} ({gpu.name}) has no power limit that can be set"
        return
    if cap is None:
        return
    if not gpu.least_w <= cap <= gpu.most_w:
        yield (
            f"{_of(wish)}: power_cap_w {cap:g} is out of the range of GPU {gpu.index}"
            f" ({gpu.name}): {gpu.least_w:g} to {gpu.most_w:g} W; change it in the tier map"
        )
    elif cap > gpu.cap_w and not allow_raise:
        yield (
            f"{_of(wish)}: power_cap_w {cap:g} is above the {gpu.cap_w:g} W that GPU {gpu.index}"
            " is limited to now; lower it, or allow it with --allow-raise"
        )


def _clock_problems(wish: Wish, gpu: GpuState) -> Iterator[str]:
    clock = wish.sm_clock_mhz
    if clock is None or clock in gpu.sm_clocks_mhz:
        return
    if not gpu.sm_clocks_mhz:
        yield f"{_of(wish)}: GPU {gpu.index} ({gpu.name}) has no SM clock that can be locked"
        return
    nearest = sorted(gpu.sm_clocks_mhz, key=lambda known: abs(known - clock))[:_NEAR]
    yield (
        f"{_of(wish)}: sm_clock_mhz {clock} is no clock of GPU {gpu.index} ({gpu.name});"
        f" near it are {', '.join(str(known) for known in sorted(nearest))}"
    )


def _notices(wish: Wish, gpu: GpuState) -> Iterator[str]:
    if wish.sm_clock_mhz is not None and gpu.is_locked:
        yield (
            f"GPU {gpu.index}: its clocks are locked to {gpu.reach_mhz} MHz or less already; NVML"
            " does not tell the lock, so it cannot be put back: it will be reset"
        )


def _changes(wish: Wish, gpu: GpuState) -> Iterator[Change]:
    if wish.power_cap_w is not None and wish.power_cap_w != gpu.cap_w:
        yield _change(gpu, Knob.POWER_CAP, gpu.cap_w, wish.power_cap_w)
    if wish.sm_clock_mhz is not None:
        yield _change(gpu, Knob.SM_CLOCK, None, wish.sm_clock_mhz)


def _change(gpu: GpuState, knob: Knob, before: float | None, after: float) -> Change:
    return Change(uuid=gpu.uuid, index=gpu.index, knob=knob, before=before, after=after)


def describe(asked: Iterable[Wish]) -> tuple[str, ...]:
    """The wishes as lines, for where there is no GPU to compare them with."""
    lines = []
    for wish in asked:
        for knob, value in (
            (Knob.POWER_CAP, wish.power_cap_w),
            (Knob.SM_CLOCK, wish.sm_clock_mhz),
        ):
            if value is not None:
                what = f"{knob.value} {value:g} {knob.unit}"
                lines.append(f"{_of(wish)}: GPU {wish.index} of {wish.host}: {what}")
    return tuple(lines)
