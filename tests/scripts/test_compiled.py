"""The package compiled: what is built when it is asked for, and that it does the same.

A wheel is built of a copy of the tree and laid over another copy, in which the router's own tests
run. Compiled modules never lie beside the sources of the checkout, whose changes they would hide.
"""

import dataclasses
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import typing
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conserve_sglang.policy import PARAMS
from conserve_sglang.router.processes import talk

ROOT = Path(__file__).parents[2]
TREE = (
    "bench", "cli", "conserve_sglang", "patches", "profiles", "scripts", "tests", "tier_maps",
    "LICENSE", "README.md", "pyproject.toml", "setup.py",
)  # fmt: skip
SAME_TESTS = (
    "tests/dispatch", "tests/workers", "tests/router/processes/test_service.py",
    "tests/router/test_busy.py", "tests/router/test_conversations_live.py",
    "tests/router/test_http.py", "tests/router/test_journal.py", "tests/router/test_refusals.py",
    "tests/router/test_turns.py",
)  # fmt: skip
needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="no C compiler (cc), or not the headers of Python, to compile with",
)


@pytest.fixture(scope="module")
def backend() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        patch.delenv("CONSERVE_SGLANG_COMPILE", raising=False)
        yield importlib.import_module("build_backend")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as it is now, without what was built or cached in it."""
    copy = tmp_path_factory.mktemp("compiled") / "tree"
    copy.mkdir()
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    return copy


def python(
    arguments: list[str], folder: Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def wheel_of(tree: Path, compiles: str) -> Path:
    """The wheel that pip makes of a tree, with what is installed here to build with."""
    out = tree.parent / f"wheel-{compiles}"
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = python([*command, "--wheel-dir", str(out), "."], tree, CONSERVE_SGLANG_COMPILE=compiles)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (wheel,) = out.glob("*.whl")
    return wheel


def test_wheel_is_pure_where_nothing_is_asked_for(copy: Path) -> None:
    wheel = wheel_of(copy, "0")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


@needs_compiler
def test_compiled_package_passes_the_same_tests(copy: Path, backend: Any) -> None:
    wheel = wheel_of(copy, "1")
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        packed.extractall(copy)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    hot = {path.removesuffix(".py") for path in backend.hot_paths()}
    assert {f"{path}{suffix}" for path in hot} <= names
    assert {f"{path}.py" for path in hot} <= names  # tracebacks show them
    said = python(["-c", "from conserve_cli.app import main; main()", "--version"], copy)
    assert said.stdout.endswith("(compiled)\n"), said.stderr
    done = python(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *SAME_TESTS], copy)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_value_that_says_neither_and_an_editable_install_are_refused(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.extensions() == []
    monkeypatch.setenv("CONSERVE_SGLANG_COMPILE", "yes")
    with pytest.raises(SystemExit, match=r"'yes'\. Set it to 1 to compile"):
        backend.is_asked()
    monkeypatch.setenv("CONSERVE_SGLANG_COMPILE", "1")
    with pytest.raises(SystemExit, match="editable install is not compiled"):
        backend.build_editable("nowhere")


def test_compiler_is_the_one_of_the_lint(backend: Any) -> None:
    pinned = (ROOT / "requirements" / "sglang-0.5.23.txt").read_text().splitlines()
    assert backend.REQUIRED[0] in pinned


def made_by_msgspec(kind: Any) -> Iterator[type[Any]]:
    """The classes that objects of a type are decoded into, its fields' classes too."""
    for part in typing.get_args(kind):
        yield from made_by_msgspec(part)
    if isinstance(kind, type) and (
        dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct)
    ):
        yield kind
        for field in typing.get_type_hints(kind).values():
            yield from made_by_msgspec(field)


def test_what_msgspec_makes_objects_of_is_not_compiled(backend: Any) -> None:
    """It reads the types of fields, which compiled classes do not tell, and calls no `__init__`."""
    hot = {path.removesuffix(".py").replace("/", ".") for path in backend.hot_paths()}
    kinds = (talk.FromFront, talk.FromBrain, *talk.FORMS, *PARAMS.values())
    decoded = {each for kind in kinds for each in made_by_msgspec(kind)}
    assert len(decoded) > 30
    assert not {each for each in decoded if each.__module__ in hot}
    for path in backend.hot_paths():
        assert "msgspec.Struct" not in (ROOT / path).read_text(), path
