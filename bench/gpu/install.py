"""Puts SGLang, packed beside the checkout, and this package on a machine without a network.

Only the standard library: nothing is installed yet. The pack is a folder with MANIFEST.json (its
`parts` with `name` and `bytes`, and the `sha256` of the whole), the parts of one tar.xz of an
unpacked site folder, and optionally `wheels/` with further wheels and `jit.tar.xz`, the compiled
kernels of an earlier run. Nothing outside `site` and the caches below /var/tmp is written.
"""

import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

REPO = Path(__file__).resolve().parents[2]
CACHES = Path("/var/tmp/conserve-jit")
IMPORTED = (
    "torch", "sgl_kernel", "flashinfer", "xgrammar", "httptools", "msgspec", "uvloop", "starlette",
    "prometheus_client", "typer", "yaml", "pynvml", "conserve_sglang", "conserve_cli",
    "sglang.srt.entrypoints.http_server", "sglang.srt.managers.scheduler",
)  # fmt: skip


class CannotInstall(Exception):
    """What is missing or broken, and what to do."""


class _Parts:
    """The parts of the archive as one stream that is hashed while it is read."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._file: BinaryIO | None = None
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        while True:
            if self._file is None:
                if not self._paths:
                    return b""
                self._file = self._paths.pop(0).open("rb")
            data = self._file.read(size)
            if data:
                self.digest.update(data)
                return data
            self._file.close()
            self._file = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return False


def install(pack: Path, site: Path) -> dict[str, Any]:
    """Unpack, unless this very pack is there already; the facts of it."""
    manifest = _manifest(pack)
    mark = site / ".installed"
    if not (mark.is_file() and mark.read_text() == manifest["sha256"]):
        shutil.rmtree(site, ignore_errors=True)
        site.mkdir(parents=True)
        _unpack(pack, manifest, site)
        for wheel in sorted((pack / "wheels").glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        if (pack / "jit.tar.xz").is_file():
            CACHES.mkdir(parents=True, exist_ok=True)
            with tarfile.open(pack / "jit.tar.xz") as archive:
                archive.extractall(CACHES, filter="data")
        mark.write_text(manifest["sha256"])
    make_known(site)
    return {"sha256": manifest["sha256"], "site": str(site)}


def make_known(site: Path) -> None:
    """This checkout as if it were installed: SGLang finds the plugin by its entry point."""
    import tomllib

    told = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    folder = site / "conserve_sglang-0+checkout.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: 0+checkout\n"
    )
    groups = {"console_scripts": told["scripts"], **told["entry-points"]}
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in groups.items()
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    for package, source in {"conserve_cli": "cli", "conserve_patches": "patches",
                            "conserve_profiles": "profiles", "conserve_sglang": "conserve_sglang",
                            "bench": "bench"}.items():  # fmt: skip
        link = site / package
        link.unlink(missing_ok=True)
        link.symlink_to(REPO / source)


def environment(site: Path) -> dict[str, str]:
    """What children's environment has beside ours, with the installed site."""
    cuda = _cuda_home()
    plugins = site / "nixl_cu13.libs" / "nixl"
    return {
        "PYTHONPATH": str(site),
        "CUDA_HOME": str(cuda),
        "PATH": f"{cuda / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "CUDA_MODULE_LOADING": "LAZY",  # of the pack's kernels not all were kept
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "TVM_FFI_CACHE_DIR": str(CACHES / "tvmffi"),
        "TRITON_CACHE_DIR": str(CACHES / "triton"),
        "FLASHINFER_WORKSPACE_BASE": str(CACHES / "flashinfer"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        # Without a network SGLang does not find the machine's own address.
        "SGLANG_HOST_IP": "127.0.0.1",
        "HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_IB_DISABLE": "1",
        "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "60",
        "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "60",
        # Two processes on one GPU: over cuda_ipc where that works, else through host memory.
        "UCX_TLS": "cuda_ipc,cuda_copy,sm,tcp,self",
        "UCX_NET_DEVICES": "lo",
        "UCX_MEMTYPE_CACHE": "n",
        **({"NIXL_PLUGIN_DIR": str(plugins)} if plugins.is_dir() else {}),
    }


def check_imports(env: dict[str, str], modules: Iterable[str] = IMPORTED) -> dict[str, str]:
    """Import each in one process; what failed, with its error."""
    program = (
        "import importlib, json, sys\nfailed = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as error: failed[name] = f'{type(error).__name__}: {error}'[:400]\n"
        "print('\\nIMPORTS ' + json.dumps(failed))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *modules],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("IMPORTS ")]
    if not told:
        return {"python": (done.stderr or done.stdout)[-600:]}
    found: dict[str, str] = json.loads(told[-1].removeprefix("IMPORTS "))
    return found


def _manifest(pack: Path) -> dict[str, Any]:
    path = pack / "MANIFEST.json"
    if not path.is_file():
        raise CannotInstall(f"{path} is not there: name the folder that the pack was made in")
    manifest: dict[str, Any] = json.loads(path.read_text())
    short = [
        part["name"]
        for part in manifest["parts"]
        if not (pack / part["name"]).is_file()
        or (pack / part["name"]).stat().st_size != part["bytes"]
    ]
    if short:
        raise CannotInstall(f"parts of the pack are missing or cut off: {', '.join(short)}")
    return manifest


def _unpack(pack: Path, manifest: dict[str, Any], site: Path) -> None:
    parts = _Parts(pack / part["name"] for part in manifest["parts"])
    with lzma.open(parts) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:  # type: ignore[call-overload]
        archive.extractall(site, filter="tar")
    while parts.read(1 << 20):
        pass
    if parts.digest.hexdigest() != manifest["sha256"]:
        raise CannotInstall("the pack's sha256 is not its manifest's: make and carry it again")


def _cuda_home() -> Path:
    """The toolkit whose lib64 has libcudart.so, which the kernels compiled there are linked to."""
    nvcc = shutil.which("nvcc")
    homes = [Path(nvcc).resolve().parents[1]] if nvcc else []
    for home in [*homes, Path("/usr/local/cuda")]:
        if (home / "lib64" / "libcudart.so").exists():
            return home
    return Path("/usr/local/cuda")
