"""What there is to choose from: GPUs by tier and host, and what may be done with them."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from conserve_sglang.core.tier import FlagValue
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.problem import GpuLimit

ALL_ROLES = (Role.PREFILL, Role.DECODE, Role.MIXED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine of a tier, and which of its GPUs may be used."""

    name: str
    gpu_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTier:
    """Equal GPUs. `tps` and `power_caps_w`: what may be chosen of that (a cap of None leaves the
    GPU as delivered); None: whatever there are profiles of. `least_cap_w`: the lowest power cap the
    cards accept, None: not known. `kv_capacity_tokens`: a worker's pool where its profile does not
    tell. `sglang_flags` go into the tier map as they are."""

    name: str
    gpu: str
    hosts: tuple[Host, ...]
    roles: tuple[Role, ...] = ALL_ROLES
    tps: tuple[int, ...] | None = None
    power_caps_w: tuple[float | None, ...] | None = None
    least_cap_w: float | None = None
    kv_capacity_tokens: int | None = None
    sglang_flags: Mapping[str, FlagValue] = field(default_factory=dict)

    @property
    def num_gpus(self) -> int:
        """All of them."""
        return sum(len(host.gpu_ids) for host in self.hosts)

    def limits(self) -> tuple[GpuLimit, ...]:
        """What fits on the hosts, by the size of a worker."""
        most = max((len(host.gpu_ids) for host in self.hosts), default=0)
        found, tp = [], 1
        while tp <= most:
            gpus = sum(len(host.gpu_ids) // tp * tp for host in self.hosts)
            found.append(GpuLimit(tier=self.name, min_tp=tp, gpus=gpus))
            tp *= 2
        found.append(GpuLimit(tier=self.name, min_tp=tp, gpus=0))
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The GPUs of a deployment, its model, and where its router is to listen."""

    model: str
    tiers: tuple[GpuTier, ...]
    served_name: str | None = None
    transfer_backend: str = "mooncake"
    router: Mapping[str, object] = field(default_factory=dict)

    @property
    def num_gpus(self) -> int:
        """All GPUs of all tiers."""
        return sum(tier.num_gpus for tier in self.tiers)


def lacking_roles(tiers: Iterable[GpuTier]) -> str | None:
    """Why these tiers can serve nothing together for want of a role; None: they have what it
    takes, mixed workers, or prefill and decode ones."""
    tiers = tuple(tiers)
    allowed = {role for tier in tiers for role in tier.roles}
    if Role.MIXED in allowed or {Role.PREFILL, Role.DECODE} <= allowed:
        return None
    said = ", ".join(
        f"{tier.name}: {' or '.join(role.value for role in tier.roles) or 'none'}" for tier in tiers
    )
    return f"roles are needed that serve, mixed, or prefill and decode; allowed are {said}"


def placed(tier: GpuTier, sizes: Mapping[int, int]) -> dict[int, list[tuple[str, tuple[int, ...]]]]:
    """Where workers go: for each size (GPUs of a worker, a power of two) its many workers, as host
    and GPU ids. On as few hosts as will do; the largest worker first, each on the host with fewest
    GPUs left that has room, which finds a place for all if there is one. Raises ValueError if there
    is none."""
    free = {host.name: list(host.gpu_ids) for host in _few(tier.hosts, sizes)}
    found: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
    for size in sorted(sizes, reverse=True):
        for _ in range(sizes[size]):
            roomy = [name for name, ids in free.items() if len(ids) >= size]
            if not roomy:
                raise ValueError(f"tier {tier.name}: no host has {size} GPUs left")
            host = min(roomy, key=lambda name: len(free[name]))
            taken, free[host] = free[host][:size], free[host][size:]
            found.setdefault(size, []).append((host, tuple(taken)))
    return found


def _few(hosts: Sequence[Host], sizes: Mapping[int, int]) -> Sequence[Host]:
    """The fewest hosts that have room for all; all of them where there is not enough. The largest
    ones, since a larger host takes all that a smaller one does; but for the last the smallest that
    will do."""
    by_room = sorted(hosts, key=lambda host: -len(host.gpu_ids))
    numbers = range(1, len(hosts) + 1)
    number = bisect_left(numbers, True, key=lambda count: _has_room(by_room[:count], sizes))
    if number == len(hosts):
        return hosts
    sure, rest = by_room[:number], by_room[number:][::-1]
    last = rest[bisect_left(rest, True, key=lambda host: _has_room([*sure, host], sizes))]
    chosen = {host.name for host in [*sure, last]}
    return [host for host in hosts if host.name in chosen]


def _has_room(hosts: Sequence[Host], sizes: Mapping[int, int]) -> bool:
    """Whether workers fit: with powers of two as sizes it is enough to count, size by size."""
    return all(
        sum(size * count for size, count in sizes.items() if size >= least)
        <= sum(len(host.gpu_ids) // least * least for host in hosts)
        for least in sizes
    )
