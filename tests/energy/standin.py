"""GPUs that obey their power limits: NVIDIA's own bindings over `standin_nvml.c`, in processes.

What is set lies in a file, so it outlives the process that set it, as on a real driver.
"""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("standin_nvml.c")
REAL_TIME = -1.0
MAX_STEPS = 4096  # this and the layout: as in standin_nvml.c
_HEAD, _GPU, _STEP = struct.Struct("ddII"), struct.Struct("II"), struct.Struct("dI4x")


def uuid(index: int) -> str:
    return f"GPU-5741d1a0-0000-0000-0000-{index:012x}"


def build(folder: Path) -> Path:
    """The folder with the library."""
    library = folder / "libnvidia-ml.so.1"
    options = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["cc", *options, "-o", str(library), str(SOURCE), "-lm"], check=True)
    return folder


class Machine:
    """A machine of such GPUs, with a folder of its own for the records."""

    def __init__(self, library: Path, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.records = folder / "records"
        self.log = folder / "setters"
        self._state = folder / "state"
        self._library = library
        self.settings = {"root": "1", "demand": "0:70;0:70", **settings}
        self.at(REAL_TIME)

    def begin_at(self, wall_s: float) -> None:
        """Have second 0 be at a Unix time; else it is when the first process asks."""
        self._state.write_bytes(struct.pack("dd", REAL_TIME, wall_s))

    def at(self, now_s: float) -> None:
        """Stop the GPUs' clock at a second; `REAL_TIME` lets it run."""
        with self._state.open("r+b" if self._state.exists() else "wb") as file:
            file.write(struct.pack("d", now_s))

    @property
    def env(self) -> dict[str, str]:
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        named = {f"STANDIN_NVML_{key.upper()}": value for key, value in self.settings.items()}
        return {
            **os.environ,
            **named,
            "LD_LIBRARY_PATH": str(self._library),
            "PYTHONPATH": paths,
            "STANDIN_NVML_STATE": str(self._state),
            "STANDIN_NVML_LOG": str(self.log),
            "CONSERVE_CAPS_DIR": str(self.records),
        }

    def start(self, *argv: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Run Python on it."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, *argv],
            env=env or self.env,
            text=True,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run Python on it to its end."""
        return subprocess.run(
            [sys.executable, *argv], env=self.env, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours on it."""
        return self.run("-c", "from conserve_cli.app import main; main()", *words)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start a command of ours on it."""
        return self.start("-c", "from conserve_cli.app import main; main()", *words)

    def evaluate(self, code: str) -> Any:
        """What `code` prints as JSON."""
        done = self.run("-c", code)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def limits_w(self) -> list[float]:
        """What is set on each GPU now, as another process sees it."""
        found: list[float] = self.evaluate(
            "import json, pynvml as n; n.nvmlInit(); print(json.dumps(["
            "n.nvmlDeviceGetPowerManagementLimit(n.nvmlDeviceGetHandleByIndex(i)) / 1e3"
            " for i in range(n.nvmlDeviceGetCount())]))"
        )
        return found

    def limit_in_force_w(self, index: int) -> float:
        """What was last set on a GPU, read from the library's own state: at once."""
        state = self._state.read_bytes()
        begin = _HEAD.size + index * (_GPU.size + MAX_STEPS * _STEP.size)
        num_steps = _GPU.unpack_from(state, begin)[0]
        _, milliwatts = _STEP.unpack_from(state, begin + _GPU.size + (num_steps - 1) * _STEP.size)
        return float(milliwatts) / 1e3

    def set_limit(self, index: int, watts: float) -> None:
        """As somebody else would: past all of our code."""
        done = self.run(
            "-c",
            "import pynvml as n; n.nvmlInit(); n.nvmlDeviceSetPowerManagementLimit("
            f"n.nvmlDeviceGetHandleByIndex({index}), {round(watts * 1e3)})",
        )
        assert done.returncode == 0, done.stderr

    def writes(self) -> list[str]:
        """Every call of a setter: "INDEX WHAT VALUE done|refused"."""
        return self.log.read_text().splitlines() if self.log.exists() else []
