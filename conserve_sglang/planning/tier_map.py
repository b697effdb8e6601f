"""A fleet as the text of a tier map that `launch` accepts."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from conserve_sglang.core.tier import PolicyChoice, TierMap
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.inventory import GpuTier, Inventory, placed
from conserve_sglang.planning.problem import Config
from conserve_sglang.planning.request import Request, Targets
from conserve_sglang.tiermap import parse_tier_map
from conserve_sglang.tiermap.check import is_loopback

FIRST_PORT = 30100
FIRST_BOOTSTRAP_PORT = 31500
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0"})

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Equal workers of one host."""

    config: Config
    host: str
    gpu_ids: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.gpu_ids) // self.config.tp


def workers_of(inventory: Inventory, counts: Mapping[Config, int]) -> tuple[Workers, ...]:
    """A fleet on its hosts: prefillers first, then in the inventory's order."""
    found: list[Workers] = []
    for tier in inventory.tiers:
        found.extend(_of_tier(tier, {c: n for c, n in counts.items() if c.tier == tier.name}))
    order = [Role.PREFILL, Role.DECODE, Role.MIXED]
    return tuple(sorted(found, key=lambda workers: order.index(workers.config.role)))


def _of_tier(tier: GpuTier, counts: Mapping[Config, int]) -> Iterator[Workers]:
    sizes: dict[int, int] = {}
    for config, count in counts.items():
        sizes[config.tp] = sizes.get(config.tp, 0) + count
    places = placed(tier, sizes)
    for config in sorted(counts, key=lambda config: config.role is not Role.PREFILL):
        own, places[config.tp] = (
            places[config.tp][: counts[config]],
            places[config.tp][counts[config] :],
        )
        for host in dict.fromkeys(host for host, _ in own):
            ids = tuple(gpu for name, gpus in own if name == host for gpu in gpus)
            yield Workers(config=config, host=host, gpu_ids=ids)


def tier_map_text(
    request: Request,
    counts: Mapping[Config, int],
    policy: PolicyChoice,
    head: Sequence[str] = (),
) -> str:
    """The file's text; `head` lines become comments at its top."""
    inventory = request.inventory
    lines = [f"# {line}".rstrip() for line in head]
    lines += ["schema_version: 1", f"model: {_flow(_model(inventory))}"]
    lines += [f"transfer_backend: {inventory.transfer_backend}", "tiers:"]
    fleet = workers_of(inventory, counts)
    lines += _tiers(inventory, fleet)
    lines.append(f"policy: {_flow({'name': policy.name, 'params': dict(policy.params)})}")
    if slo := _slo(request.targets):
        lines.append(f"slo: {_flow(slo)}")
    if request.power_budget_w is not None:
        if why_not := _unwatched(inventory, fleet):
            lines += [f"# {line}" for line in textwrap.wrap(why_not, 100)]
        lines.append(f"power_budget_w: {_number(request.power_budget_w)}")
        if not why_not:
            lines.append("energy: {}")
    if inventory.router:
        lines.append(f"router: {_flow(inventory.router)}")
    return "\n".join(lines) + "\n"


def budget_note(request: Request, counts: Mapping[Config, int]) -> str:
    """Who keeps the power budget of a planned map; empty where there is none."""
    if request.power_budget_w is None:
        return ""
    return _unwatched(request.inventory, workers_of(request.inventory, counts)) or (
        "The power budget is kept by the router, which measures (energy: {} is in the map); such a"
        " launch needs root."
    )


def _unwatched(inventory: Inventory, fleet: Sequence[Workers]) -> str:
    """Why a map cannot have energy read, so that nobody watches its power budget; empty if it
    can."""
    kept = "Caps and rated power of the GPUs keep the power budget; the router does not watch it"
    state = inventory.router.get("state")
    if isinstance(state, Mapping) and state.get("redis") is not None:
        return f"{kept}, as replicas of it (router.state.redis) would each move the caps."
    far = next((workers.host for workers in fleet if not is_loopback(workers.host)), None)
    if far is None or inventory.router.get("admin_key_env") is not None:
        return ""
    return (
        f"{kept}. For that add energy: {{}}, and to router admin_key_env: VARIABLE, which names the"
        f" key that its agent on {far} asks for; with admin_key_env in the inventory's router plan"
        " writes both."
    )


def check_wording(request: Request, source: str, folder: Path) -> None:
    """That the inventory's own words (flags, the router's settings) fit a tier map, before anything
    is planned: one worker of each tier, as a map. Raises TierMapError."""
    first = {one.tier: one for one in reversed(request.hardware)}
    counts = {one.config(Role.MIXED): 1 for one in first.values()}
    text = tier_map_text(request, counts, PolicyChoice(name="colocated", params={}))
    checked(text, source=source, folder=folder)


def checked(text: str, source: str, folder: Path) -> TierMap:
    """The text, read as `launch` reads it. Raises TierMapError where the inventory's own words
    (flags, the router's settings) do not fit a tier map."""
    return parse_tier_map(text, source=source, folder=folder)


def _model(inventory: Inventory) -> dict[str, object]:
    name = {} if inventory.served_name is None else {"served_name": inventory.served_name}
    return {"path": inventory.model, **name}


def _slo(targets: Targets) -> dict[str, object]:
    slo = {"ttfet_s": targets.ttfet_s, "last_turn_tbt_s": targets.tbt_s, "e2e_s": targets.e2e_s}
    return {name: value for name, value in slo.items() if value is not None}


def _tiers(inventory: Inventory, fleet: Sequence[Workers]) -> Iterator[str]:
    ports: dict[str, int] = {}
    names = _names(fleet)
    tiers = {tier.name: tier for tier in inventory.tiers}
    for workers, name in zip(fleet, names, strict=True):
        host = "loopback" if workers.host in LOOPBACK else workers.host
        offset = ports.get(host, 0)
        ports[host] = offset + workers.count
        config, tier = workers.config, tiers[workers.config.tier]
        yield f"  - name: {name}"
        yield f"    role: {config.role.value}"
        yield f"    gpu: {tier.gpu}"
        yield f"    count: {workers.count}"
        yield f"    host: {workers.host}"
        yield f"    gpu_ids: [{', '.join(map(str, workers.gpu_ids))}]"
        if config.tp > 1:
            yield f"    tp: {config.tp}"
        yield f"    base_port: {FIRST_PORT + offset}"
        if config.role is Role.PREFILL:
            yield f"    bootstrap_base_port: {FIRST_BOOTSTRAP_PORT + offset}"
        if config.power_cap_w is not None:
            yield f"    power_cap_w: {_number(config.power_cap_w)}"
        if config.sm_clock_mhz is not None:
            yield f"    sm_clock_mhz: {config.sm_clock_mhz}"
        yield f"    profile: {config.profile}"
        if tier.sglang_flags:
            yield f"    sglang_flags: {_flow(tier.sglang_flags)}"


def _names(fleet: Sequence[Workers]) -> list[str]:
    """Tier names: the inventory's and the role; numbered where several hosts have the same."""
    wanted = [f"{workers.config.tier}-{workers.config.role.value}" for workers in fleet]
    found, seen = [], dict.fromkeys(wanted, 0)
    for name in wanted:
        seen[name] += 1
        found.append(name if wanted.count(name) == 1 else f"{name}-{seen[name]}")
    return found


def _flow(value: object) -> str:
    """A value on one line: YAML reads JSON; plain keys and words need no quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, str):
        return (
            value
            if _PLAIN.fullmatch(value) and yaml.safe_load(value) == value
            else json.dumps(value)
        )
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value)


def _number(value: float) -> str:
    return f"{value:.10g}"
