"""Fingerprints of the SGLang functions the plugin hooks, calls or replicates.

A manifest lists them for one SGLang version. What is hashed is the text of the definition, from
its first decorator to its last line: dedented, trailing blanks removed, without empty lines and
without lines that are only a comment. The text is found by parsing the file; nothing of SGLang is
imported, so a wheel that was only unpacked can be checked as well as an installed one.
"""

import ast
import hashlib
import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # Python 3.11 and later

SCHEMA_VERSION = 1
MANIFEST_PACKAGE = "conserve_patches"
_FOLDER_PREFIX = "sglang-"
_HASHED = (
    "sha256 of the definition's text, first decorator to last line: dedented, without trailing"
    " blanks, empty lines and comment-only lines"
)


class Status(Enum):
    """How a function of an SGLang tree compares with the manifest."""

    EQUAL = "equal"
    CHANGED = "changed"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One function of SGLang that the plugin depends on."""

    target: str
    """Dotted path by which the plugin reaches it (a mixin's method: by the class that has it)."""
    file: str
    """Where it is defined, relative to the package folder."""
    qualname: str
    sha256: str
    role: str
    """`hooked`, `called`, or `relied on` (its behaviour is assumed, it is not called)."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything the plugin depends on in one SGLang version."""

    sglang: str
    functions: tuple[Function, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One function of a manifest, as found in an SGLang tree."""

    function: Function
    status: Status
    found_sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A manifest for another version, and how each function compares with the one it is from."""

    manifest: Manifest
    based_on: str
    findings: tuple[Finding, ...]

    def with_status(self, status: Status) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.status is status)


def fingerprint(source: str, qualname: str) -> str | None:
    """The fingerprint of a function, method or class; None when the source lacks it."""
    node = _find(_parse(source).body, qualname.split("."))
    if node is None or node.end_lineno is None:
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    text = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
    lines = (line.rstrip() for line in textwrap.dedent(text).splitlines())
    kept = [line for line in lines if line and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def compare(manifest: Manifest, sglang_root: Path) -> tuple[Finding, ...]:
    """Compare a manifest with the `sglang` package folder of an installation."""
    sources: dict[str, str | None] = {}
    return tuple(_look_up(function, sglang_root, sources) for function in manifest.functions)


def known_versions() -> tuple[str, ...]:
    """The SGLang versions that have a manifest, oldest first."""
    names = (entry.name for entry in _manifest_root().iterdir() if entry.is_dir())
    versions = (name.removeprefix(_FOLDER_PREFIX) for name in names if _is_folder_name(name))
    return tuple(sorted(versions, key=version_key))


def read_manifest(version: str) -> Manifest | None:
    """The manifest of one SGLang version; None when there is none."""
    file = _manifest_root() / f"{_FOLDER_PREFIX}{version}" / "manifest.json"
    if not file.is_file():
        return None
    return parse_manifest(file.read_text(encoding="utf-8"))


def parse_manifest(text: str) -> Manifest:
    """Read a manifest's JSON."""
    data = json.loads(text)
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"manifest schema {data['schema_version']}, expected {SCHEMA_VERSION}")
    functions = tuple(Function(**entry) for entry in data["functions"])
    return Manifest(sglang=data["sglang"], functions=functions)


def render_manifest(manifest: Manifest) -> str:
    """A manifest as the JSON text stored under `patches/`."""
    data = {
        "schema_version": SCHEMA_VERSION,
        "sglang": manifest.sglang,
        "hashed": _HASHED,
        "functions": [asdict(function) for function in manifest.functions],
    }
    return json.dumps(data, indent=2) + "\n"


def draft(sglang_root: Path, version: str) -> Draft:
    """A manifest for the SGLang under `sglang_root`, from the nearest known version's."""
    nearest = nearest_version(version, known_versions())
    known = read_manifest(nearest)
    assert known is not None
    findings = compare(known, sglang_root)
    functions = tuple(_as_found(finding) for finding in findings if finding.found_sha256)
    manifest = Manifest(sglang=version, functions=functions)
    return Draft(manifest=manifest, based_on=nearest, findings=findings)


def nearest_version(version: str, known: Iterable[str]) -> str:
    """The known version closest to `version`; of two equally close, the newer."""

    def rank(other: str) -> int:
        major, minor, micro = version_key(other)
        return (major * 1000 + minor) * 1000 + micro

    return min(known, key=lambda other: (abs(rank(other) - rank(version)), -rank(other)))


def version_key(version: str) -> tuple[int, int, int]:
    """The release numbers of a version, for ordering; a suffix such as `rc1` is left out."""
    parts = [_leading_int(part) for part in version.split("+", maxsplit=1)[0].split(".")[:3]]
    major, minor, micro = [*parts, 0, 0, 0][:3]
    return major, minor, micro


def _leading_int(text: str) -> int:
    digits = ""
    for char in text:
        if not char.isdigit():
            break
        digits += char
    return int(digits or "0")


def _is_folder_name(name: str) -> bool:
    return name.startswith(_FOLDER_PREFIX)


def _manifest_root() -> "Traversable":
    return resources.files(MANIFEST_PACKAGE)


def _look_up(function: Function, root: Path, sources: dict[str, str | None]) -> Finding:
    if function.file not in sources:
        path = root / function.file
        sources[function.file] = path.read_text(encoding="utf-8") if path.is_file() else None
    source = sources[function.file]
    found = fingerprint(source, function.qualname) if source is not None else None
    if found is None:
        status = Status.GONE
    elif found == function.sha256:
        status = Status.EQUAL
    else:
        status = Status.CHANGED
    return Finding(function=function, status=status, found_sha256=found)


def _as_found(finding: Finding) -> Function:
    values = asdict(finding.function)
    values["sha256"] = finding.found_sha256
    return Function(**values)


@lru_cache(maxsize=2)  # the functions of one file stand together in a manifest
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _find(body: list[ast.stmt], names: list[str]) -> _Definition | None:
    head, *rest = names
    matches = [node for node in _definitions(body) if node.name == head]
    if not matches:
        return None
    node = matches[-1]  # a redefinition wins, as it does when the module runs
    return _find(node.body, rest) if rest else node


def _definitions(body: list[ast.stmt]) -> Iterator[_Definition]:
    """The definitions of one scope, also those under an `if` or `try`."""
    for node in body:
        if isinstance(node, _Definition):
            yield node
        elif isinstance(node, ast.If):
            yield from _definitions([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _definitions([*node.body, *node.orelse, *node.finalbody])
