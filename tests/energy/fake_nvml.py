"""NVIDIA's bindings against a stand-in libnvidia-ml with a known power trace, in another process.

The library is built from `../shared/gpu/fake_nvml.c`, which lies beside the project.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT.parent / "shared" / "gpu" / "fake_nvml.c"


def build(folder: Path) -> Path:
    """The folder with the library."""
    library = folder / "libnvidia-ml.so.1"
    options = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["cc", *options, "-o", str(library), str(SOURCE), "-lm"], check=True)
    return folder


def run(folder: Path, argv: list[str], **trace: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the library in front; `trace` are the stand-in's settings."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": paths}
    env |= {f"FAKE_NVML_{name.upper()}": value for name, value in trace.items()}
    return subprocess.run(
        [sys.executable, *argv], env=env, capture_output=True, text=True, check=False, timeout=60
    )


def evaluate(folder: Path, code: str, **trace: str) -> Any:
    """What `code` prints as JSON."""
    done = run(folder, ["-c", code], **trace)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
