"""The checks of an installation as lines and as JSON."""

import json
from collections.abc import Sequence
from typing import Protocol

import typer


class Check(Protocol):
    """One thing that was looked at; `todo` says what to do when it is not fine."""

    @property
    def name(self) -> str: ...
    @property
    def is_fine(self) -> bool: ...
    @property
    def found(self) -> str: ...
    @property
    def todo(self) -> str | None: ...


def print_checks(checks: Sequence[Check], *, as_json: bool) -> bool:
    """Print all; whether all are fine."""
    if as_json:
        rows = [
            {"name": check.name, "is_fine": check.is_fine, "found": check.found, "todo": check.todo}
            for check in checks
        ]
        typer.echo(json.dumps(rows, indent=2))
    else:
        for check in checks:
            mark = ("note" if check.todo else "ok") if check.is_fine else "FAIL"
            typer.echo(f"{mark:<4} {check.name}: {check.found}")
            if check.todo:
                typer.echo(f"     {check.todo}")
    return all(check.is_fine for check in checks)
