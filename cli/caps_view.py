"""Plans of caps and what was put back, as lines and as JSON."""

import json
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import typer

from conserve_sglang.energy.cap_records import CapRecords
from conserve_sglang.energy.control_log import Difference
from conserve_sglang.energy.holder import restore_all
from conserve_sglang.energy.knobs import Knobs
from conserve_sglang.launcher.caps import CapsShown


def print_plan(shown: CapsShown, *, as_json: bool) -> None:
    """What would be set, here and elsewhere."""
    plan = shown.plan
    if as_json:
        typer.echo(json.dumps(plan_as_json(shown), indent=2))
        return
    if not shown.here and not shown.elsewhere:
        typer.echo("no caps in this tier map: no tier has power_cap_w or sm_clock_mhz")
        return
    for line in plan_lines(shown):
        typer.echo(line)
    if plan is not None and not plan.changes and not plan.problems:
        typer.echo("here nothing is to be changed")


def plan_lines(shown: CapsShown) -> list[str]:
    """The plan; where it could not be compared with GPUs, the wishes and why."""
    lines = [f"elsewhere: {line}" for line in shown.elsewhere]
    if shown.plan is None:
        lines += [f"asked for: {line}" for line in shown.here]
        if shown.why_not is not None:
            lines.append(f"not checked against the GPUs: {shown.why_not}")
        return lines
    lines += [f"to be set: {change}" for change in shown.plan.changes]
    lines += [f"note: {line}" for line in shown.plan.notices]
    return lines + [f"refused: {line}" for line in shown.plan.problems]


def plan_as_json(shown: CapsShown) -> dict[str, object]:
    """The same for a program."""
    plan = shown.plan
    return {
        "elsewhere": list(shown.elsewhere),
        "asked_for": list(shown.here),
        "not_checked": shown.why_not,
        "changes": [
            {**asdict(change), "knob": change.knob.value, "unit": change.knob.unit}
            for change in (plan.changes if plan else ())
        ],
        "notices": list(plan.notices) if plan else [],
        "problems": list(plan.problems) if plan else [],
    }


def wait_for_signal(message: str) -> None:
    """Say that all is well and wait to be ended."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    typer.echo(message)
    while not asked.wait(0.2):
        pass


def run_restore(*, is_forced: bool, as_json: bool) -> bool:
    """Replay the records; whether every GPU that had one is as it was found."""
    records = CapRecords()
    if not list(records.read_all()):
        typer.echo("[]" if as_json else f"nothing to put back: no record in {records.folder}")
        return True
    knobs = Knobs()
    try:
        done = restore_all(knobs, records, is_forced=is_forced)
    finally:
        knobs.close()
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in done], indent=2))
    for each in done if not as_json else ():
        mark = "ok  " if each.is_restored else "FAIL"
        typer.echo(f"{mark} GPU {each.index} ({each.uuid}): {each.message}")
    return all(each.is_restored for each in done)


def print_replay(count: int, differing: Sequence[Difference], *, as_json: bool) -> None:
    """How many periods were played, and those in which the law moves otherwise today."""
    if as_json:
        document = {"periods": count, "differences": [asdict(each) for each in differing]}
        typer.echo(json.dumps(document, indent=2))
        return
    for each in differing:
        typer.echo(f"line {each.number}, {each.at_s:.1f} s: logged {_shown(each.logged)}")
        typer.echo(f"{'':>8}now {_shown(each.replayed)}")
    what = "the same moves" if not differing else f"{len(differing)} with other moves"
    typer.echo(f"{count} periods: {what}")


def _shown(moves: Sequence[Mapping[str, Any]]) -> str:
    said = [
        f"{move['tier']} {move['before_w']:g} -> {move['after_w']:g} W ({move['reason']})"
        if move["kind"] == "cap"
        else f"turns {move['before']} -> {move['after']} ({move['reason']})"
        for move in moves
    ]
    return ", ".join(said) or "nothing"
