"""What is wrong with an inventory beyond the form of its file. Pure: a value in, problems out."""

from collections.abc import Iterator

from conserve_sglang.planning.inventory import GpuTier, Inventory
from conserve_sglang.profiles.hardware import most_cap_w

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0"})


def problems(inventory: Inventory) -> Iterator[str]:
    """Everything wrong with it, each as "where: what; what to do"."""
    names = [tier.name for tier in inventory.tiers]
    if len(set(names)) < len(names):
        yield "tiers: two have the same name; rename one"
    for tier in inventory.tiers:
        for problem in _tier(tier):
            yield f"tier {tier.name}{problem}"
    yield from _taken_twice(inventory)


def _tier(tier: GpuTier) -> Iterator[str]:
    for tp in tier.tps or ():
        if tp & (tp - 1):
            yield f": tp: {tp} is no power of two"
    yield from _caps(tier)
    seen: set[str] = set()
    for host in tier.hosts:
        if len(set(host.gpu_ids)) < len(host.gpu_ids):
            yield f", host {host.name}: a GPU stands there twice"
        if not host.gpu_ids:
            yield f", host {host.name}: has no GPU; leave it out"
        if _machine(host.name) in seen:
            yield (
                f": hosts: {host.name} stands there twice; write all its GPUs into one, with gpus"
                " or gpu_ids"
            )
        seen.add(_machine(host.name))


def _caps(tier: GpuTier) -> Iterator[str]:
    least_w, most_w = tier.least_cap_w, most_cap_w(tier.gpu)
    for cap in tier.power_caps_w or ():
        if cap is not None and least_w is not None and cap < least_w:
            yield (
                f": power_caps_w: {cap:g} W is less than the {least_w:g} W that the {tier.gpu}"
                " accepts; leave it out, or say in least_power_cap_w what `nvidia-smi -q -d POWER`"
                " tells as the Min Power Limit of these cards"
            )
        if cap is not None and most_w is not None and cap > most_w:
            yield (
                f": power_caps_w: {cap:g} W is more than the {most_w:g} W that the {tier.gpu}"
                " accepts; leave it out, or write null for GPUs as delivered"
            )


def _taken_twice(inventory: Inventory) -> Iterator[str]:
    """Tiers that name the same GPU: a GPU serves one."""
    owners: dict[tuple[str, int], str] = {}
    clashes: dict[tuple[str, str, str], list[int]] = {}
    for tier in inventory.tiers:
        for host in tier.hosts:
            for gpu in host.gpu_ids:
                owner = owners.setdefault((_machine(host.name), gpu), tier.name)
                if owner != tier.name:
                    clashes.setdefault((owner, tier.name, host.name), []).append(gpu)
    for (one, other, name), gpus in clashes.items():
        which = f"GPU {gpus[0]}" if len(gpus) == 1 else f"GPUs {', '.join(map(str, gpus))}"
        yield (
            f"tiers {one} and {other}: both have {which} of {name}; say with gpu_ids which are"
            " whose (gpus: N means the first N)"
        )


def _machine(host: str) -> str:
    return "this machine" if host in _LOOPBACK else host
