"""The shipped manifests against the SGLang they are for, without importing it."""

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from conserve_sglang.plugin.adapter import adapter_for
from conserve_sglang.plugin.hooks import (
    decoder_hooks,
    front_hooks,
    guards,
    observer_hooks,
    phase_hooks,
)
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.manifest import (
    Function,
    Manifest,
    Status,
    compare,
    known_versions,
    read_manifest,
)
from conserve_sglang.plugin.settings import read_settings

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "wheels"
SETTINGS = read_settings({"CONSERVE_LOCAL_PREFILL": "1"})


def the_manifest(version: str) -> Manifest:
    manifest = read_manifest(version)
    assert manifest is not None
    return manifest


def differing(manifest: Manifest, root: Path) -> list[Function]:
    return [f.function for f in compare(manifest, root) if f.status is not Status.EQUAL]


def test_two_versions_are_supported() -> None:
    assert known_versions() == ("0.5.17", "0.5.23")


@pytest.mark.parametrize("version", known_versions())
def test_every_hooked_function_is_in_the_manifest(version: str) -> None:
    inside = Inside(sglang_version=version, adapter=adapter_for(version), settings=SETTINGS)
    hooks = (*decoder_hooks(inside), *front_hooks(inside), *observer_hooks(inside))
    hooks += phase_hooks(inside)
    hooks += guards(hooks, inside, is_scheduler=True) + guards(hooks, inside, is_scheduler=False)
    listed = {f.target for f in the_manifest(version).functions if f.role == "hooked"}
    assert {hook.target for hook in hooks} == listed


@pytest.mark.parametrize("version", known_versions())
def test_every_entry_says_why_it_is_there(version: str) -> None:
    for function in the_manifest(version).functions:
        assert function.why
        assert function.role in {"hooked", "called", "relied on"}
        assert re.fullmatch("[0-9a-f]{64}", function.sha256)


@pytest.mark.skipif(find_spec("sglang") is None, reason="SGLang is not installed")
def test_the_installed_sglang_is_the_one_in_its_manifest() -> None:
    spec = find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    assert differing(the_manifest(metadata.version("sglang")), root) == []


@pytest.mark.parametrize("version", known_versions())
def test_the_published_wheel_is_the_one_in_the_manifest(version: str, tmp_path: Path) -> None:
    manifest = the_manifest(version)
    with zipfile.ZipFile(wheel(version)) as archive:
        for file in {function.file for function in manifest.functions}:
            archive.extract(f"sglang/{file}", tmp_path)
    assert differing(manifest, tmp_path / "sglang") == []


def wheel(version: str) -> Path:
    """The wheel of a version, downloaded once."""
    pattern = f"sglang-{version}-*.whl"
    if not list(CACHE.glob(pattern)):
        CACHE.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary"]
        subprocess.run([*argv, ":all:", "-d", str(CACHE), f"sglang=={version}"], check=True)
    return next(iter(CACHE.glob(pattern)))
