"""What there is to choose from: GPUs by tier and host, and what may be done with them."""

from collections.abc import Mapping
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


def placed(tier: GpuTier, sizes: Mapping[int, int]) -> dict[int, list[tuple[str, tuple[int, ...]]]]:
    """Where workers go: for each size (GPUs of a worker, a power of two) its many workers, as host
    and GPU ids. The largest first, each on the host with fewest GPUs left that has room, which
    finds a place for all if there is one. Raises ValueError if there is none."""
    free = {host.name: list(host.gpu_ids) for host in tier.hosts}
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
