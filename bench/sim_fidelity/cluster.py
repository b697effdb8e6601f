"""Real servers on the CPU with one router for each policy in front of them."""

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.demo.cluster import COMMAND, OUT, TIER_MAP, local_url, running_child, wait_until_up

PORT_OFFSET = 1000
"""From the demo's ports, so that one may run beside what is left of the other."""

IDLE_LIMIT_S = 30.0
Map = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is started: tiers and the policies to play on them."""

    name: str
    tiers: Sequence[Map]
    policies: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Servers that answer. `routers` by policy; `tier_maps` are what each router was given."""

    model: str
    workers: Mapping[str, str]
    routers: Mapping[str, str]
    tier_maps: Mapping[str, Path]

    def forget_everything(self) -> None:
        """Empty every KV cache, once the servers are idle."""
        for url in self.workers.values():
            deadline = time.monotonic() + IDLE_LIMIT_S
            while not _is_flushed(url):
                if time.monotonic() > deadline:
                    raise SystemExit(f"{url} is not idle after {IDLE_LIMIT_S:.0f} s")
                time.sleep(0.1)

    def end(self, policy: str, conversation_id: str) -> None:
        """Tell a router that a conversation is over, so that its books are empty again."""
        url = f"{self.routers[policy]}/v1/conversations/{conversation_id}"
        request = urllib.request.Request(url, method="DELETE")
        with urllib.request.urlopen(request, timeout=30):
            pass


def deployments() -> list[Deployment]:
    """One prefiller and two decoders; and as many servers that do both, for collocation."""
    base = _base()
    prefill, decode = base["tiers"]
    mixed = {key: value for key, value in decode.items() if key != "bootstrap_base_port"}
    mixed |= {"name": "mixed", "role": "mixed", "count": 3, "base_port": 31300}
    pair_policies = ("conserve", "work-conserving", "conserve-pack", "stock-pd", "round-robin")
    return [
        Deployment(name="1 + 2", tiers=[prefill, decode], policies=pair_policies),
        Deployment(name="3 mixed", tiers=[mixed], policies=("colocated",)),
    ]


def servers_env(threads: int) -> dict[str, str]:
    """So many threads for each server's steps. With a thread for each core of this machine, as is
    the default, servers beside each other would wait for each other's threads in every step."""
    return {"OMP_NUM_THREADS": str(threads)}


def write_maps(deployment: Deployment) -> dict[str, Path]:
    """A tier map on disk for each policy."""
    OUT.mkdir(exist_ok=True)
    return {
        policy: _write(deployment, policy, number)
        for number, policy in enumerate(deployment.policies)
    }


@contextmanager
def running(deployment: Deployment, env: dict[str, str]) -> Iterator[Site]:
    """Start everything, wait until it answers, and take it down again. `env` is the servers'."""
    maps = write_maps(deployment)
    first = next(iter(maps.values()))
    logs = str(OUT / "logs" / "sim_fidelity")
    launch = ["launch", "--no-router", "--no-state", "--tier-map", str(first), "--log-dir", logs]
    with ExitStack() as stack:
        children = [
            stack.enter_context(running_child("fidelity_launch", [str(COMMAND), *launch], env))
        ]
        for policy, path in maps.items():
            route = [str(COMMAND), "route", "--no-state", "--tier-map", str(path)]
            children.append(stack.enter_context(running_child(f"fidelity_{policy}", route, {})))
        decoded = {policy: yaml.safe_load(path.read_text()) for policy, path in maps.items()}
        site = Site(
            model=_base()["model"]["served_name"],
            workers={
                f"{tier['name']}-{number}": local_url(tier["base_port"] + number)
                for tier in decoded[deployment.policies[0]]["tiers"]
                for number in range(tier["count"])
            },
            routers={
                policy: local_url(tier_map["router"]["port"])
                for policy, tier_map in decoded.items()
            },
            tier_maps=maps,
        )
        wait_until_up(site.routers.values(), len(site.workers), children)
        yield site


def _base() -> Map:
    tier_map: Map = yaml.safe_load(TIER_MAP.read_text())
    return tier_map


def _write(deployment: Deployment, policy: str, number: int) -> Path:
    base = _base()
    params = base["policy"].get("params", {}) if policy == "conserve" else {}
    tiers = []
    for tier in deployment.tiers:
        moved = dict(tier)
        for key in ("base_port", "bootstrap_base_port"):
            if key in moved and moved[key] < 31000:
                moved[key] += PORT_OFFSET
        moved["sglang_flags"] = {**tier["sglang_flags"], "enable-metrics": True}
        tiers.append(moved)
    router = base["router"]
    tier_map = base | {
        "tiers": tiers,
        "policy": {"name": policy, "params": params},
        "model": base["model"] | {"path": str((TIER_MAP.parent / base["model"]["path"]).resolve())},
        "router": router
        | {
            "port": router["port"] + PORT_OFFSET + 10 * number,
            "control_port": router["control_port"] + PORT_OFFSET + 10 * number,
        },
    }
    path = OUT / f"fidelity_{policy}.yaml"
    path.write_text(yaml.safe_dump(tier_map, sort_keys=False))
    return path


def _is_flushed(url: str) -> bool:
    request = urllib.request.Request(f"{url}/flush_cache", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30):
            return True
    except urllib.error.HTTPError:  # busy
        return False
