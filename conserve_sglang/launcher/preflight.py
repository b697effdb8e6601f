"""What must be true before anything is started, each with what to do when it is not."""

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace

from conserve_sglang.core.errors import LaunchError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.launcher.doctor import how_to_install_sglang
from conserve_sglang.launcher.plan import LaunchPlan, ProcessSpec
from conserve_sglang.launcher.ports import is_free, listener
from conserve_sglang.tiermap.outside import router_problems, worker_problems

_ENGINES = {
    "mooncake": ("from mooncake.engine import TransferEngine", "mooncake-transfer-engine"),
    "mooncake_tcp": ("from mooncake.engine import TransferEngine", "mooncake-transfer-engine"),
    "nixl": ("from nixl._api import nixl_agent", "nixl"),
}
_SYSTEM_PACKAGES = {"mooncake-transfer-engine": "libibverbs1 libnuma1 libcurl4"}
_IMPORT_TIMEOUT_S = 60.0


def check(plan: LaunchPlan, tier_map: TierMap) -> None:
    """Raise LaunchError with everything that stands in the way."""
    found = [*_sglang(), *_outside(plan, tier_map), *_engine(plan, tier_map), *_ports(plan)]
    if found:
        raise LaunchError("nothing was started:\n" + "\n".join(f"  * {line}" for line in found))


def _sglang() -> Iterator[str]:
    if importlib.util.find_spec("sglang") is None:
        yield f"SGLang is not installed in this Python; {how_to_install_sglang()}"


def _outside(plan: LaunchPlan, tier_map: TierMap) -> Iterator[str]:
    """Files and variables; what router and workers miss alike is said once."""
    names = {spec.name for spec in plan.workers}
    workers = [worker for worker in tier_map.workers if worker.worker_id in names]
    found = dict.fromkeys(worker_problems(tier_map, workers))
    if plan.router is not None:
        if "--no-state" in plan.router.argv:
            tier_map = replace(tier_map, router=replace(tier_map.router, state=None))
        found.update(dict.fromkeys(router_problems(tier_map)))
    yield from found


def _engine(plan: LaunchPlan, tier_map: TierMap) -> Iterator[str]:
    """Import the engine in a process of its own: its shared libraries may be what is missing."""
    disaggregated = [spec for spec in plan.workers if "--disaggregation-mode" in spec.argv]
    if not disaggregated:
        return
    statement, package = _ENGINES[tier_map.transfer_backend]
    error = _import_error(statement, disaggregated[0])
    if error is None:
        return
    on_cpu = "cpu" in disaggregated[0].argv
    wheel = f"{package}-non-cuda" if on_cpu and package.startswith("mooncake") else package
    todo = f"pip install {wheel}"
    if "No module named" not in error and package in _SYSTEM_PACKAGES:
        todo = f"apt-get install {_SYSTEM_PACKAGES[package]} (then, if need be, {todo})"
    yield f"the transfer engine {tier_map.transfer_backend} cannot be loaded: {error}; {todo}"


def _import_error(statement: str, spec: ProcessSpec) -> str | None:
    try:
        done = subprocess.run(
            [spec.argv[0], "-c", statement],
            capture_output=True,
            text=True,
            env={**os.environ, **spec.env},
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"importing it took more than {_IMPORT_TIMEOUT_S:g} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _ports(plan: LaunchPlan) -> Iterator[str]:
    for spec in plan.processes:
        for host, port in spec.listens:
            if not is_free(host, port):
                owner = listener(port)
                by = f" by {owner}" if owner else ""
                yield (
                    f"port {port} on {host}, which {spec.name} is to listen on, is in use{by};"
                    " stop that, or change the port in the tier map"
                )
