"""Profiles as text and as JSON. Whatever is estimated stands beside that word."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from conserve_sglang.core.errors import ProfileError
from conserve_sglang.profiles import LeftOut, Profile, Provenance

KINDS = ("prefill", "decode", "transfer", "request", "handoff")
BATCHES = (1, 8, 32, 128)
CONTEXTS = (512, 2048, 8192, 32_768)
LENGTHS = (256, 1024, 4096, 16_384)
CACHED = (0, 4096, 16_384, 32_768)


def print_list(profiles: Sequence[Profile], *, as_json: bool) -> None:
    """One row a profile."""
    if as_json:
        typer.echo(json.dumps([head_of(profile) for profile in profiles], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("profile", "GPU", "model", "engine", "cap W", "times", "watts"):
        is_number = title == "cap W"
        table.add_column(title, justify="right" if is_number else "left", no_wrap=True)
    for profile in profiles:
        table.add_row(
            profile.name,
            profile.gpu + (f" x {profile.tp}" if profile.tp > 1 else ""),
            profile.model.rsplit("/", 1)[-1],
            profile.engine,
            _watts(profile.power_cap_w),
            profile.provenance.kind,
            "-" if profile.power_provenance is None else profile.power_provenance.kind,
        )
    Console().print(table)
    typer.echo("An estimated number was computed, not measured: conserve-sglang profiles show NAME")


def print_profile(profile: Profile, *, as_json: bool) -> None:
    """A profile with its provenance, a few of its values, and its interpolation error."""
    if as_json:
        points = {kind: [asdict(point) for point in getattr(profile, kind)] for kind in KINDS}
        document = head_of(profile) | {"leave_one_out": asdict(profile.leave_one_out())} | points
        typer.echo(json.dumps(document, indent=2))
        return
    console = Console()
    console.print(f"[bold]{profile.name}[/bold]: {profile.gpu} x {profile.tp}, {profile.model}"
                  f" {profile.dtype}, {profile.engine} {profile.engine_version},"
                  f" {profile.graph_mode}")  # fmt: skip
    console.print(
        f"cap {_watts(profile.power_cap_w)} W of {_watts(profile.tdp_w)} W rated, idle"
        f" {_watts(profile.idle_w)} W; room for {profile.kv_capacity_tokens or 'unknown'} KV"
        f" tokens; {profile.chunk_tokens or 'unknown'} tokens a prefill step"
    )
    _print_provenance(console, "times", profile.provenance)
    if profile.power_provenance is not None:
        _print_provenance(console, "watts", profile.power_provenance)
    marks = f"times {profile.provenance.kind}" + (
        f", watts {profile.power_provenance.kind}" if profile.power_provenance else ""
    )
    console.print(_grid(
        f"prefill by new tokens ({marks})", "cached", CACHED, LENGTHS,
        lambda cached, new: _cell(profile.prefill_s, profile.prefill_w, new, cached),
    ))  # fmt: skip
    console.print(_grid(
        f"decode step by context per request ({marks})", "batch", BATCHES,
        CONTEXTS,
        lambda b, c: _cell(profile.decode_step_s, profile.decode_w, b, b * c),
    ))  # fmt: skip
    fronts = {"on one worker": profile.request, "through a prefiller": profile.handoff}
    for where, found in fronts.items():
        told = ", ".join(f"{1e3 * p.seconds:.1f} ms at {p.tokens:,} tokens" for p in found)
        console.print(f"first token {where}, beyond its prefill: {told or 'not known'}")
    first_s = profile.first_handoff_s
    told = "not known" if first_s is None else f"{1e3 * first_s:.1f} ms"
    console.print(f"first handoff of a pair, beyond a later one: {told}")
    console.print(_errors(profile))


def head_of(profile: Profile) -> dict[str, Any]:
    """A profile without its points, as plain values."""
    plain = {"schema_version": profile.schema_version} | asdict(profile)
    for kind in KINDS:
        plain[f"num_{kind}_points"] = len(plain.pop(kind))
    return plain | {"is_estimated": profile.is_estimated}


def _print_provenance(console: Console, what: str, provenance: Provenance) -> None:
    date = f", {provenance.date}" if provenance.date else ""
    error = f" Error: {provenance.error}." if provenance.error else ""
    text = f"{what} {provenance.kind}{date}: {provenance.source}.{error}"
    console.print(text, markup=False, highlight=False)
    if provenance.machine:
        facts = ", ".join(f"{name} {value}" for name, value in provenance.machine.items())
        console.print(f"  on {facts}", markup=False, highlight=False)


def _grid(
    title: str,
    first: str,
    rows: Sequence[int],
    columns: Sequence[int],
    cell: Callable[[int, int], str],
) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(first, justify="right", no_wrap=True)
    for column in columns:
        table.add_column(f"{column:,}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(f"{row:,}", *(cell(row, column) for column in columns))
    return table


def _cell(
    seconds: Callable[[int, int], float],
    watts: Callable[[int, int], float | None],
    first: int,
    second: int,
) -> str:
    try:
        told_s, told_w = seconds(first, second), watts(first, second)
    except ProfileError:
        return "-"
    shown = f"{told_s:.2f} s" if told_s >= 1 else f"{1e3 * told_s:.1f} ms"
    return shown + ("" if told_w is None else f" {told_w:.0f} W")


def _errors(profile: Profile) -> Table:
    table = Table(
        title="each point told from the others (leave-one-out error)",
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for title in ("points of", "number", "at the edge", "median", "p95", "worst"):
        table.add_column(title, justify="left" if title == "points of" else "right")
    for name, left in accuracy_of(profile).items():
        if left is not None:
            table.add_row(
                name.replace("_", ", "), str(left.num_points), str(left.num_edge),
                *(_percent(e) for e in (left.median_error, left.p95_error, left.worst_error)),
            )  # fmt: skip
    return table


def accuracy_of(profile: Profile) -> dict[str, LeftOut | None]:
    """The parts of a profile's accuracy by name."""
    told = profile.leave_one_out()
    names = ("prefill", "prefill_watts", "decode", "decode_watts", "transfer")
    return {name: getattr(told, name) for name in names}


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{error:.1%}"


def _watts(watts: float | None) -> str:
    return "-" if watts is None else f"{watts:.0f}"
