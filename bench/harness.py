"""What all benchmarks share: machine facts, percentiles of samples, one JSON record per run."""

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from conserve_sglang.core.stats import percentile

RESULTS = Path(__file__).parent / "results"


def machine_facts() -> dict[str, Any]:
    """CPU model, core count, memory, Python and revision: what a number depends on."""
    model = "unknown"
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory_kib = 0
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal"):
            memory_kib = int(line.split()[1])
    return {
        "cpu": model,
        "num_cores": _num_cores(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "revision": revision(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def revision() -> str:
    """The commit this tree stands at, shortened."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def spread(samples: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99, minimum and maximum of samples, in their unit."""
    ordered = sorted(samples)
    return {
        "min": ordered[0],
        "p50": percentile(ordered, 50),
        "p95": percentile(ordered, 95),
        "p99": percentile(ordered, 99),
        "max": ordered[-1],
    }


def rss_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(_read("/proc/self/statm").split()[1]) * resource.getpagesize()


def save(name: str, record: dict[str, Any]) -> Path:
    """Write one run's record to bench/results/NAME.json, with the machine's facts."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    whole = {"bench": name, "command": " ".join(sys.orig_argv[1:]), "machine": machine_facts()}
    path.write_text(json.dumps(whole | record, indent=2) + "\n")
    return path


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
