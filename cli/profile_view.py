"""How a profile is shown while it is measured: a bar with the time left, lines, or JSON lines."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from conserve_sglang.launcher.progress import Progress as LaunchProgress
from conserve_sglang.profiler.options import Event, Profiled, Report
from conserve_sglang.profiler.outcome import Outcome
from conserve_sglang.profiler.sweep import Step


@contextmanager
def showing(*, as_json: bool) -> Iterator[Report]:
    """A report that shows progress the way stderr or stdout can take it."""
    if as_json:
        yield _print_json
    elif sys.stderr.isatty():
        with _bar() as progress:
            yield _on_terminal(progress)
    else:
        yield _print_line


def print_result(results: Sequence[Profiled], *, as_json: bool) -> None:
    """Say what was written, how sure it is, and what could not be measured."""
    for result in results:
        profile = result.profile
        counts = {
            "prefill": len(profile.prefill),
            "decode": len(profile.decode),
            "transfer": len(profile.transfer),
            "request": len(profile.request),
            "handoff": len(profile.handoff),
        }
        if as_json:
            document: dict[str, Any] = {
                "profile": str(result.path),
                "page": None if result.page is None else str(result.page),
                "points": counts,
                "first_handoff_s": profile.first_handoff_s,
                "error": profile.provenance.error,
                "failures": dict(result.failures),
            }
            typer.echo(json.dumps(document))
            continue
        points = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        typer.echo(f"wrote {result.path}: {points} points; {profile.provenance.error}")
        if result.page is not None:
            typer.echo(f"wrote {result.page}")
        for point, why in result.failures:
            typer.echo(f"not measured: {point}: {why}")


def describe(outcome: Outcome) -> str:
    """One measured point in a line."""
    what = outcome.point.describe()
    if outcome.seconds is None:
        return f"{what}: not measured: {outcome.failure}"
    sure = "" if outcome.rel_ci is None else f" +-{100 * outcome.rel_ci:.1f} %"
    watts = "" if outcome.watts is None else f", {outcome.watts:.0f} W"
    return f"{what}: {outcome.seconds * 1e3:.2f} ms{sure}, {outcome.num_repeats} repeats{watts}"


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} points"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
    )


def _on_terminal(progress: Progress) -> Report:
    task = progress.add_task("starting workers", total=None, left="")

    def report(event: Event) -> None:
        if isinstance(event, LaunchProgress):
            progress.update(task, description=event.message)
        elif isinstance(event, str):
            progress.console.print(event)
        else:
            if event.last is not None:
                progress.console.print(describe(event.last))
            progress.update(
                task,
                completed=event.num_done,
                total=event.num_done + event.num_left,
                left=_left(event),
                description=event.now.describe() if event.now else "done",
            )

    return report


def _left(step: Step) -> str:
    if step.left_s is None:
        return ""
    minutes, seconds = divmod(round(step.left_s), 60)
    return f"{minutes}:{seconds:02} left"


def _print_line(event: Event) -> None:
    if isinstance(event, LaunchProgress):
        typer.echo(event.message)
    elif isinstance(event, str):
        typer.echo(event)
    elif event.last is not None:
        total = event.num_done + event.num_left
        typer.echo(f"{event.num_done}/{total} {_left(event)}  {describe(event.last)}")
    sys.stdout.flush()


def _print_json(event: Event) -> None:
    document: dict[str, Any]
    if isinstance(event, LaunchProgress):
        document = {"step": event.step.value, "message": event.message}
    elif isinstance(event, str):
        document = {"step": "notice", "message": event}
    else:
        document = {
            "step": "point",
            "num_done": event.num_done,
            "num_left": event.num_left,
            "left_s": None if event.left_s is None else round(event.left_s, 1),
            "last": None if event.last is None else event.last.point.key,
            "seconds": None if event.last is None else event.last.seconds,
        }
    typer.echo(json.dumps(document))
    sys.stdout.flush()
