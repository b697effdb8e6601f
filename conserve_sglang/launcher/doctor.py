"""Checking an installation without starting a server, and without importing torch or SGLang.

Every check says what was found, and what to do when that will not serve. A check that is not fine
stops a server from working; a warning is fine, but has something to do as well.
"""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from conserve_sglang.core.errors import CapsError, ConfigError
from conserve_sglang.energy.cap_records import CapRecords
from conserve_sglang.plugin.manifest import (
    Draft,
    Status,
    compare,
    draft,
    known_versions,
    read_manifest,
    render_manifest,
)

ENTRY_POINT_GROUP = "sglang.srt.plugins"
ENTRY_POINT = "conserve"
OLDEST_PYTHON = (3, 10)
_ENGINE_LIBRARIES = {
    "libcurl.so.4": "libcurl4",
    "libibverbs.so.1": "libibverbs1",
    "libnuma.so.1": "libnuma1",
}
_VERSION_LINE = re.compile(r"^(?:__version__ = )?version = ['\"]([^'\"]+)['\"]", re.MULTILINE)


class Severity(Enum):
    """How much a check matters when it is not met."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    is_met: bool
    severity: Severity
    found: str
    todo: str | None

    @property
    def is_fine(self) -> bool:
        """Whether servers can work as things are."""
        return self.is_met or self.severity is not Severity.ERROR


def run_checks(sglang_root: Path | None = None) -> list[Check]:
    """Look at everything a deployment on this machine needs."""
    root = sglang_root if sglang_root is not None else _installed_root()
    version = _version_of(root)
    return [
        _check_python(),
        _check_sglang(root, version),
        _check_manifest(root, version),
        _check_entry_point(),
        _check_transfer_engine(),
        _check_nvml(),
        *_check_gpus(),
        *check_caps(),
    ]


def how_to_install_sglang() -> str:
    """Where SGLang comes from; its own requirements are CUDA packages, so [cpu] leaves it out."""
    return (
        "with a GPU pip install 'conserve-sglang[gpu]'; on the CPU `make setup` in a checkout,"
        f" or pip install --no-deps sglang=={known_versions()[-1]} beside 'conserve-sglang[cpu]'"
    )


def draft_manifest(sglang_root: Path | None = None) -> str:
    """A manifest for the SGLang found, as JSON; its `draft` part says what changed.

    What changed must be read before the rest may be trusted.
    """
    root = sglang_root if sglang_root is not None else _installed_root()
    version = _version_of(root)
    if root is None or version is None:
        where = root if root is not None else "this environment"
        raise ConfigError(f"No SGLang in {where}: give its package folder with --sglang-root.")
    return render_draft(draft(root, version))


def render_draft(drafted: Draft) -> str:
    """A draft as JSON: how it compares with the manifest it is from, then the manifest."""

    def names(status: Status) -> list[str]:
        return [f"{f.function.file}: {f.function.qualname}" for f in drafted.with_status(status)]

    note = {
        "based_on": drafted.based_on,
        "changed": names(Status.CHANGED),
        "gone": names(Status.GONE),
        "num_equal": len(names(Status.EQUAL)),
        "todo": "read what changed, find what is gone, then remove this part",
    }
    return (
        json.dumps({"draft": note, **json.loads(render_manifest(drafted.manifest))}, indent=2)
        + "\n"
    )


def _check(severity: Severity, name: str, is_met: bool, found: str, todo: str) -> Check:
    todo_now = None if is_met else todo
    return Check(name=name, is_met=is_met, severity=severity, found=found, todo=todo_now)


_error = partial(_check, Severity.ERROR)
_warning = partial(_check, Severity.WARNING)


def _check_python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return _error(
        "Python", sys.version_info[:2] >= OLDEST_PYTHON, found, "use Python 3.10 or newer"
    )


def _check_sglang(root: Path | None, version: str | None) -> Check:
    supported = known_versions()
    todo = f"install one of SGLang {', '.join(supported)}: {how_to_install_sglang()}"
    if root is None or version is None:
        return _error("SGLang", False, "not installed", todo)
    return _error("SGLang", version in supported, f"{version} in {root}", todo)


def _check_manifest(root: Path | None, version: str | None) -> Check:
    name = "Manifest"
    manifest = read_manifest(version) if version is not None else None
    if root is None or manifest is None:
        todo = (
            "install a supported SGLang, or draft a manifest: conserve-sglang doctor --new-manifest"
        )
        return _error(name, False, f"none for SGLang {version or '(not installed)'}", todo)
    differing = [f for f in compare(manifest, root) if f.status is not Status.EQUAL]
    if not differing:
        return _error(name, True, f"{len(manifest.functions)} functions as expected", "")
    listed = ", ".join(f"{f.function.qualname} ({f.status.value})" for f in differing)
    todo = f"reinstall: pip install --force-reinstall --no-deps sglang=={version}"
    return _error(name, False, f"SGLang's source differs: {listed}", todo)


def _check_entry_point() -> Check:
    name = "Plugin entry point"
    found = [p for p in metadata.entry_points(group=ENTRY_POINT_GROUP) if p.name == ENTRY_POINT]
    if not found:
        return _error(
            name,
            False,
            "not registered",
            "pip install conserve-sglang into the environment of SGLang",
        )
    allowed = os.environ.get("SGLANG_PLUGINS", "")
    is_allowed = not allowed or ENTRY_POINT in {part.strip() for part in allowed.split(",")}
    todo = f"add {ENTRY_POINT} to SGLANG_PLUGINS, or unset it"
    said = f"SGLANG_PLUGINS={allowed}" if allowed else "all plugins are loaded"
    return _error(name, is_allowed, f"{found[0].value}; {said}", todo)


def _check_transfer_engine() -> Check:
    name = "Transfer engine"
    engines = [engine for engine in ("mooncake", "nixl") if find_spec(engine) is not None]
    if not engines:
        todo = "pip install mooncake-transfer-engine (without CUDA: ...-non-cuda)"
        return _error(name, False, "neither mooncake nor nixl is installed", todo)
    missing = [lib for lib in _ENGINE_LIBRARIES if not _can_load(lib)]
    if "mooncake" in engines and missing:
        packages = " ".join(_ENGINE_LIBRARIES[library] for library in missing)
        return _error(
            name, False, f"mooncake lacks {', '.join(missing)}", f"apt-get install {packages}"
        )
    return _error(name, True, ", ".join(engines), "")


def _check_nvml() -> Check:
    installed = {name for name in ("nvidia-ml-py", "pynvml") if _is_installed(name)}
    todo = "pip uninstall pynvml && pip install nvidia-ml-py: pynvml shadows NVIDIA's own bindings"
    found = ", ".join(sorted(installed)) or "none (needed for energy figures only)"
    return _warning("NVML bindings", "pynvml" not in installed, found, todo)


def _check_gpus(run: Callable[[list[str]], str | None] | None = None) -> list[Check]:
    """GPUs, and whether their power caps can be set; a machine without one serves on its CPU."""
    query = "--query-gpu=index,name,power.limit,power.min_limit,power.max_limit"
    output = (run or _run)(["nvidia-smi", query, "--format=csv,noheader"])
    if output is None:
        return [_warning("GPUs", True, "none found by nvidia-smi; CPU tiers only", "")]
    gpus = [line.strip() for line in output.splitlines() if line.strip()]
    checks = [_warning("GPUs", bool(gpus), "; ".join(gpus) or "none", "check the driver")]
    if gpus:
        is_root = os.geteuid() == 0
        todo = "power caps in a tier map need root: run as root, or leave power_cap_w out"
        found = "root" if is_root else "not root"
        checks.append(_warning("Power caps", is_root, found, todo))
    return checks


def check_caps(records: CapRecords | None = None) -> list[Check]:
    """GPUs whose caps a crash has left behind; nothing is said where there is no record."""
    records = CapRecords() if records is None else records
    try:
        left = [record for record in records.read_all() if not records.is_held(record.uuid)]
    except CapsError as error:
        return [_warning("Caps left behind", False, str(error), "see there")]
    if not left:
        return []
    found = ", ".join(f"GPU {record.index} ({record.uuid})" for record in left)
    return [_warning("Caps left behind", False, found, "conserve-sglang doctor --restore")]


def _installed_root() -> Path | None:
    spec = find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _version_of(root: Path | None) -> str | None:
    """The version an SGLang package folder says it is, else that of the installed package."""
    if root is None:
        return None
    file = root / "_version.py"
    match = _VERSION_LINE.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    if match is not None:
        return match[1]
    is_installed = root == _installed_root() and _is_installed("sglang")
    return metadata.version("sglang") if is_installed else None


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _run(argv: list[str]) -> str | None:
    if shutil.which(argv[0]) is None:
        return None
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
