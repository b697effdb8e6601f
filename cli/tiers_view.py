"""Tier maps as tables and as JSON."""

from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import Tier, TierMap, WorkerPlan
from conserve_sglang.launcher.energy_check import check_energy_files, energy_notices
from conserve_sglang.launcher.here import host_test
from conserve_sglang.launcher.plan import notices
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.tiermap.outside import router_problems, worker_problems
from conserve_sglang.tiermap.secrets import (
    MASK,
    is_secret_flag,
    is_secret_variable,
    without_password,
)


def check_files(
    files: Iterable[Path], here: Enum | None = None, host: str | None = None
) -> list[dict[str, Any]]:
    """Each file with what is wrong with it, or None, and with what its user should know.

    `here` says what of it is to run on this machine ("router", "workers", "all"): what is missing
    for that is wrong. None: all is looked for, and what is missing is only told.
    """
    return [_checked(path, here, host) for path in files]


def as_document(tier_map: TierMap) -> dict[str, Any]:
    """The decoded tier map, defaults filled in and secrets masked, as plain JSON values."""
    document: dict[str, Any] = msgspec.to_builtins(tier_map)
    for tier in document["tiers"]:
        tier["env"] = _masked(tier["env"], is_secret_variable)
        tier["sglang_flags"] = _masked(tier["sglang_flags"], is_secret_flag)
    state = document["router"]["state"]
    if state is not None and state["redis"] is not None:
        state["redis"] = without_password(state["redis"])
    return {**document, "notices": list(notices(tier_map))}


def _masked(values: dict[str, Any], is_secret: Callable[[str], bool]) -> dict[str, Any]:
    return {name: MASK if is_secret(name) else value for name, value in values.items()}


def print_table(tier_map: TierMap) -> None:
    """One row a worker, then policy, router and what is not applied."""
    console = Console()
    title = f"{tier_map.model.served_name}, policy {tier_map.policy.name}"
    table = Table(
        title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False
    )
    for column in ("worker", "role", "GPU", "GPU ids", "host", "port", "bootstrap", "knobs"):
        table.add_column(column, overflow="fold")  # names are to be read whole
    for worker in tier_map.workers:
        table.add_row(*_cells(worker, tier_map.tier_of(worker)))
    console.print(table)
    router = tier_map.router
    control = f"{router.control_host}:{router.control_port}"
    console.print(f"router on {router.host}:{router.port}, control port on {control}")
    for notice in notices(tier_map):
        console.print(f"note: {notice}")


def _cells(worker: WorkerPlan, tier: Tier) -> tuple[str, ...]:
    knobs = []
    if tier.power_cap_w is not None:
        knobs.append(f"{tier.power_cap_w:g} W")
    if tier.sm_clock_mhz is not None:
        knobs.append(f"{tier.sm_clock_mhz} MHz")
    return (
        worker.worker_id,
        worker.role.value,
        tier.gpu,
        ", ".join(str(gpu_id) for gpu_id in worker.gpu_ids) or "-",
        worker.host,
        str(worker.port),
        str(worker.bootstrap_port or "-"),
        ", ".join(knobs) or "-",
    )


def _checked(path: Path, here: Enum | None, host: str | None) -> dict[str, Any]:
    missing: list[str] = []
    try:
        tier_map = load_tier_map(path)
        check_energy_files(tier_map)
        told = [*notices(tier_map), *energy_notices(tier_map)]
        missing += _missing(tier_map, "all" if here is None else here.value, host)
        if here is not None and missing:
            raise ConfigError("\n".join(f"{path}: {problem}" for problem in missing))
    except ConfigError as error:
        return {"file": str(path), "error": str(error), "notices": [], "missing": missing}
    return {"file": str(path), "error": None, "notices": told, "missing": missing}


def _missing(tier_map: TierMap, part: str, host: str | None) -> list[str]:
    """Files and variables that are not here; what two parts miss alike once."""
    found: list[str] = []
    if part != "workers":
        found += router_problems(tier_map)
    if part != "router":
        is_here = host_test(host)
        workers = [worker for worker in tier_map.workers if is_here(worker.host)]
        if workers:
            found += worker_problems(tier_map, workers)
        elif part == "workers":
            hosts = ", ".join(sorted({worker.host for worker in tier_map.workers}))
            found.append(f"no worker of it runs on this machine; its hosts are {hosts}; see --host")
    return list(dict.fromkeys(found))
