"""Profiles as files: NAME.yaml says what they are of and where from, NAME.csv has the points."""

import csv
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from conserve_sglang.core.errors import ProfileError
from conserve_sglang.profiles.profile import (
    SCHEMA_VERSION,
    DecodePoint,
    FrontPoint,
    GraphMode,
    PrefillPoint,
    Profile,
    Provenance,
    ProvenanceKind,
    TransferPoint,
)

COLUMNS = (
    "kind", "new_tokens", "cached_tokens", "batch", "kv_tokens", "tokens", "seconds", "watts",
    "rel_ci",
)  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_NEEDED = {
    "prefill": ("new_tokens", "cached_tokens", "batch"),
    "decode": ("batch", "kv_tokens"),
    "transfer": ("tokens",),
    "request": ("tokens",),
    "handoff": ("tokens",),
}
_SINCE = {"request": 2, "handoff": 2, "first_handoff_s": 2}
"""The first version of the format that has points of a kind, or a field, where that is not 1."""
_POINTS = tuple(_NEEDED)
T = TypeVar("T")


class ProvenanceHead(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A `Provenance` in the file."""

    kind: ProvenanceKind
    source: str
    date: str | None = None
    machine: dict[str, str] = {}
    error: str | None = None


class Head(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A `Profile` without its points, as it stands in the YAML file beside its version."""

    name: str
    gpu: str
    model: str
    dtype: str
    engine: str
    engine_version: str
    graph_mode: GraphMode
    provenance: ProvenanceHead
    power_provenance: ProvenanceHead | None = None
    tp: int = 1
    power_cap_w: float | None = None
    sm_clock_mhz: int | None = None
    tdp_w: float | None = None
    idle_w: float | None = None
    kv_bytes_per_token: int | None = None
    kv_capacity_tokens: int | None = None
    chunk_tokens: int | None = None
    first_handoff_s: float | None = None


def load_profile(path: Path) -> Profile:
    """Read NAME.yaml and the NAME.csv beside it. ProfileError says what is wrong, where."""
    version, head = _head(path)
    points = _points(path.with_suffix(".csv"), version)
    prefill, decode = points["prefill"], points["decode"]
    facts = {field.name: getattr(head, field.name) for field in msgspec.structs.fields(head)}
    power = head.power_provenance
    facts["provenance"] = _provenance(head.provenance)
    facts["power_provenance"] = None if power is None else _provenance(power)
    facts |= {kind: tuple(found) for kind, found in points.items()}
    profile = Profile(**facts)
    watts = [point.watts for point in prefill] + [point.watts for point in decode]
    if power is None and any(watts):
        raise ProfileError(f"{path}: {path.stem}.csv has watts: say in power_provenance where from")
    return profile


def save_profile(profile: Profile, folder: Path) -> Path:
    """Write NAME.yaml and NAME.csv into a folder, which is made; the YAML file's path.

    Each file is replaced whole. Raises ProfileError for a name that cannot be a file's.
    """
    if not _NAME.fullmatch(profile.name):
        raise ProfileError(
            f"{profile.name!r} cannot be a profile's name: small letters, digits, '.', '_', '-'"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{profile.name}.yaml"
    _replace(path.with_suffix(".csv"), _grid_text(profile))
    _replace(path, _head_text(profile))
    return path


def _head(path: Path) -> tuple[int, Head]:
    """The version of the format, and the rest."""
    try:
        text = path.read_text(encoding="utf-8")
        plain = yaml.safe_load(text)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProfileError(f"{path}: not valid YAML: {error}") from error
    version = plain.pop("schema_version", None) if isinstance(plain, dict) else None
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise ProfileError(
            f"{path}: schema_version is {version!r}, this release reads 1 to {SCHEMA_VERSION};"
            " write the profile anew"
        )
    try:
        head = msgspec.convert(plain, Head)
    except msgspec.ValidationError as error:
        raise ProfileError(f"{path}: {error}") from error
    if head.name != path.stem:
        raise ProfileError(f"{path}: its name is {head.name!r}; it must be that of the file")
    for name in ("tp", "power_cap_w", "sm_clock_mhz", "tdp_w", "idle_w", "kv_bytes_per_token",
                 "kv_capacity_tokens", "chunk_tokens"):  # fmt: skip
        value = getattr(head, name)
        if value is not None and not value > 0:
            raise ProfileError(f"{path}: {name}: {value} is not positive")
    _check_first_handoff(path, version, head.first_handoff_s)
    return version, head


def _check_first_handoff(path: Path, version: int, seconds: float | None) -> None:
    if seconds is None:
        return
    if version < _SINCE["first_handoff_s"]:
        raise ProfileError(
            f"{path}: schema_version {version} has no first_handoff_s; {_SINCE['first_handoff_s']}"
            " has"
        )
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ProfileError(f"{path}: first_handoff_s: {seconds} is not a number from 0 on")


def _points(grid: Path, version: int) -> dict[str, list[Any]]:
    """Of each kind the points of a file, which says to be of this version of the format."""
    found: dict[str, list[Any]] = {kind: [] for kind in _NEEDED}
    seen: dict[object, int] = {}
    for number, row in _rows(grid):
        where = f"{grid}:{number}"
        kind = row["kind"]
        if kind not in _NEEDED:
            raise ProfileError(f"{where}: kind {kind!r} is none of {', '.join(_NEEDED)}")
        if version < _SINCE.get(kind, 1):
            raise ProfileError(
                f"{where}: schema_version {version} has no {kind} points; {_SINCE[kind]} has"
            )
        place = (kind, *(_whole(row, name, where) for name in _NEEDED[kind]))
        if place in seen:
            raise ProfileError(f"{where}: the same point as in line {seen[place]}")
        seen[place] = number
        found[kind].append(_READERS[kind](row, where))
    for kind in ("prefill", "decode"):
        if not found[kind]:
            raise ProfileError(f"{grid}: no {kind} points; a profile needs both phases")
    return found


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: is not UTF-8 text: {error.reason}") from error
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ProfileError(f"{path}: its first line must be {','.join(COLUMNS)}")
    for row in reader:
        if None in row or None in row.values():
            raise ProfileError(f"{path}:{reader.line_num}: needs {len(COLUMNS)} columns")
        yield reader.line_num, row


def _prefill_point(row: Mapping[str, str], where: str) -> PrefillPoint:
    return PrefillPoint(
        new_tokens=_whole(row, "new_tokens", where),
        cached_tokens=_whole(row, "cached_tokens", where, least=0),
        batch=_whole(row, "batch", where),
        seconds=_number(row, "seconds", where),
        watts=_maybe(row, "watts", where),
        rel_ci=_maybe(row, "rel_ci", where),
    )


def _decode_point(row: Mapping[str, str], where: str) -> DecodePoint:
    return DecodePoint(
        batch=_whole(row, "batch", where),
        kv_tokens=_whole(row, "kv_tokens", where),
        step_s=_number(row, "seconds", where),
        watts=_maybe(row, "watts", where),
        rel_ci=_maybe(row, "rel_ci", where),
    )


def _transfer_point(row: Mapping[str, str], where: str) -> TransferPoint:
    return TransferPoint(
        tokens=_whole(row, "tokens", where), seconds=_number(row, "seconds", where)
    )


def _front_point(row: Mapping[str, str], where: str) -> FrontPoint:
    return FrontPoint(
        tokens=_whole(row, "tokens", where),
        seconds=_number(row, "seconds", where),
        rel_ci=_maybe(row, "rel_ci", where),
    )


_READERS: Mapping[str, Callable[[Mapping[str, str], str], object]] = {
    "prefill": _prefill_point,
    "decode": _decode_point,
    "transfer": _transfer_point,
    "request": _front_point,
    "handoff": _front_point,
}


def _whole(row: Mapping[str, str], name: str, where: str, least: int | None = None) -> int:
    if least is None:
        least = 0 if name == "cached_tokens" else 1
    value = _as(int, row[name], f"{where}: {name}", "a whole number")
    if value < least:
        raise ProfileError(f"{where}: {name}: {value} is less than {least}")
    return value


def _number(row: Mapping[str, str], name: str, where: str) -> float:
    value = _as(float, row[name], f"{where}: {name}", "a number")
    if not (math.isfinite(value) and value > 0):
        raise ProfileError(f"{where}: {name}: {value} is not a positive number")
    return value


def _maybe(row: Mapping[str, str], name: str, where: str) -> float | None:
    return _number(row, name, where) if row[name] else None


def _as(make: Callable[[str], T], text: str, where: str, what: str) -> T:
    try:
        return make(text)
    except ValueError:
        raise ProfileError(f"{where}: {text!r} is not {what}") from None


def _provenance(head: ProvenanceHead) -> Provenance:
    return Provenance(**{f.name: getattr(head, f.name) for f in msgspec.structs.fields(head)})


def _head_text(profile: Profile) -> str:
    head: dict[str, Any] = {"schema_version": profile.schema_version}
    for field in fields(profile):
        value = getattr(profile, field.name)
        if field.name in _POINTS or value is None:
            continue
        head[field.name] = _plain(value) if isinstance(value, Provenance) else value
    return yaml.safe_dump(head, sort_keys=False, width=100, allow_unicode=True)


def _plain(provenance: Provenance) -> dict[str, Any]:
    plain = asdict(provenance) | {"machine": dict(provenance.machine)}
    return {name: value for name, value in plain.items() if value not in (None, {})}


def _grid_text(profile: Profile) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(profile))
    return out.getvalue()


def _lines(profile: Profile) -> Iterable[dict[str, Any]]:
    for prefill in profile.prefill:
        yield {"kind": "prefill"} | asdict(prefill)
    for decode in profile.decode:
        plain = asdict(decode)
        yield {"kind": "decode", "seconds": plain.pop("step_s")} | plain
    for transfer in profile.transfer:
        yield {"kind": "transfer"} | asdict(transfer)
    for kind, points in (("request", profile.request), ("handoff", profile.handoff)):
        for point in points:
            yield {"kind": kind} | asdict(point)


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
