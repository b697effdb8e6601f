"""How a survey of energy counters is shown."""

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from conserve_sglang.energy.survey import Survey, Surveyed


def print_survey(found: Survey, *, as_json: bool) -> None:
    """As a table, or as one JSON object."""
    if as_json:
        typer.echo(json.dumps(_plain(found)))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("device", "counter", "every", "now", "limit", "range", "used"):
        table.add_column(title)
    for one in found.devices:
        table.add_row(*_row(one))
    Console().print(table)
    for problem in found.problems:
        typer.echo(f"Not read: {problem}")
    typer.echo(_permission(found))


def _permission(found: Survey) -> str:
    if all(one.limits is None for one in found.devices):
        return "No device here tells a power limit, so nothing is known of setting one."
    if found.may_set:
        return "This process has CAP_SYS_ADMIN, which NVML asks of whoever sets; nothing was set."
    return "This process may not set power limits and clocks (no CAP_SYS_ADMIN); nothing was set."


def _row(one: Surveyed) -> tuple[str, ...]:
    reading, limits, used = one.reading, one.limits, one.used
    return (
        f"{one.device.name}\n{one.device.device_id}",
        f"{reading.source}\n({reading.origin.value})",
        "unknown" if reading.period_s is None else f"{1e3 * reading.period_s:.0f} ms",
        "-" if reading.watts is None else f"{reading.watts:.1f} W\n({reading.origin.value})",
        "-" if limits is None else f"{limits.enforced_w:.0f} W",
        "-" if limits is None else f"{limits.least_w:.0f}-{limits.most_w:.0f} W",
        "-"
        if used is None
        else f"{used.joules:.1f} J in {used.seconds:.1f} s\n({used.origin.value})",
    )


def _plain(found: Survey) -> dict[str, Any]:
    return {
        "has_cap_sys_admin": found.may_set,
        "problems": list(found.problems),
        "devices": [
            {
                "id": one.device.device_id,
                "kind": one.device.kind.value,
                "name": one.device.name,
                "source": one.reading.source,
                "origin": one.reading.origin.value,
                "period_s": one.reading.period_s,
                "watts": one.reading.watts,
                "limits": None if one.limits is None else {
                    name: getattr(one.limits, name)
                    for name in ("set_w", "enforced_w", "default_w", "least_w", "most_w")
                },
                "used": None if one.used is None else {
                    "seconds": one.used.seconds,
                    "joules": one.used.joules,
                    "origin": one.used.origin.value,
                },
            }
            for one in found.devices
        ],
    }  # fmt: skip
