"""How a launch is shown: a live table on a terminal, lines elsewhere, or JSON lines."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from conserve_sglang.core.tier import TierMap
from conserve_sglang.launcher.caps import show_caps
from conserve_sglang.launcher.energy_check import energy_notices
from conserve_sglang.launcher.launch import LaunchOptions
from conserve_sglang.launcher.plan import ProcessSpec, command_line, notices, without_secrets
from conserve_sglang.launcher.process import last_lines
from conserve_sglang.launcher.progress import Progress, Report, Step

from .caps_view import plan_as_json, plan_lines

_STYLES = {
    Step.STARTING: "yellow",
    Step.READY: "green",
    Step.DIED: "red",
    Step.WAITING: "yellow",
    Step.GIVEN_UP: "red",
}


def print_commands(
    tier_map: TierMap,
    commands: Sequence[tuple[str, ProcessSpec]],
    options: LaunchOptions,
    *,
    as_json: bool,
) -> None:
    """Show every process of a tier map, and its caps on this machine, instead of starting it.

    Exits with 3 where a launch would, as these caps cannot be set.
    """
    caps = show_caps(tier_map, options.host)
    told = [*notices(tier_map), *energy_notices(tier_map)]
    if as_json:
        rows = [
            {"name": spec.name, "host": host, "env": dict(spec.env), "argv": list(spec.argv)}
            for host, spec in ((host, without_secrets(spec)) for host, spec in commands)
        ]
        document = {
            "processes": rows,
            "notices": told,
            "caps": plan_as_json(caps),
        }
        typer.echo(json.dumps(document, indent=2))
    else:
        for notice in told:
            typer.echo(f"# {notice}")
        for line in plan_lines(caps):
            typer.echo(f"# power caps: {line}")
        for where, spec in commands:
            typer.echo(f"\n# {spec.name} on {where}\n{command_line(spec)}")
    if options.with_caps and caps.plan is not None and caps.plan.problems:
        raise typer.Exit(3)


@contextmanager
def showing(*, as_json: bool) -> Iterator[Report]:
    """A report that shows progress the way stdout can take it."""
    if as_json:
        yield _print_json
    elif sys.stdout.isatty():
        with Live(_Table(), console=Console(), refresh_per_second=4, transient=True) as live:
            yield _on_terminal(live)
    else:
        yield _print_line


def _print_json(progress: Progress) -> None:
    fields = {name: getattr(progress, name) for name in Progress.__slots__}
    fields["step"] = progress.step.value
    _flush({name: value for name, value in fields.items() if value is not None})


def _flush(document: dict[str, object]) -> None:
    typer.echo(json.dumps(document))
    sys.stdout.flush()


def _print_line(progress: Progress) -> None:
    typer.echo(progress.message)
    sys.stdout.flush()


def _on_terminal(live: Live) -> Report:
    """Lasting lines for what should stay readable; the table for what changes."""
    table = live.get_renderable()
    assert isinstance(table, _Table)

    def report(progress: Progress) -> None:
        if progress.step is Step.LOADING:
            return  # the table tells it all the time
        if progress.process is not None:
            table.note(progress)
        if progress.step is not Step.STARTING:
            live.console.print(Text(progress.message, style=_STYLES.get(progress.step, "")))
        live.refresh()

    return report


class _Table:
    """The processes that are not up yet, each with its time and the last line of its log."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[Progress, float]] = {}

    def note(self, progress: Progress) -> None:
        """Take over what is newest of a process."""
        if progress.process is not None:
            self._latest[progress.process] = (progress, time.monotonic())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Rows of the processes that are still on their way."""
        table = Table(box=None, pad_edge=False)
        for column in ("process", "state", "time", "last line of its log"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for name, (progress, since) in self._latest.items():
            if progress.step is Step.READY:
                continue
            lines = last_lines(Path(progress.log), 1) if progress.log else ()
            table.add_row(
                name,
                Text(progress.step.value, style=_STYLES.get(progress.step, "")),
                f"{time.monotonic() - since:.0f} s",
                Text(lines[0] if lines else ""),
            )
        if table.row_count:
            yield table
