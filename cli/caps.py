"""conserve-sglang caps: power caps and SM clocks of a tier map's GPUs, planned, held, put back."""

from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import HostOption, JsonOption, TierMapOption

app = typer.Typer(help="Power caps and SM clocks: plan, hold, put back.", no_args_is_help=True)

RaiseOption = Annotated[
    bool,
    typer.Option("--allow-raise", help="Also raise limits above what they are now."),
]


@app.command()
def plan(
    tier_map: TierMapOption,
    host: HostOption = None,
    allow_raise: RaiseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what would be set, and what forbids it. Writes nothing and needs no GPU."""
    from conserve_sglang.launcher.caps import show_caps
    from conserve_sglang.tiermap import load_tier_map

    from .caps_view import print_plan

    with clean_failure():
        shown = show_caps(load_tier_map(tier_map), host, allow_raise=allow_raise)
        print_plan(shown, as_json=as_json)
    if shown.plan is not None and shown.plan.problems:
        raise typer.Exit(3)


@app.command()
def apply(
    tier_map: TierMapOption,
    is_meant: Annotated[
        bool, typer.Option("--write", help="Really set them; else this is the plan alone.")
    ] = False,
    host: HostOption = None,
    allow_raise: RaiseOption = False,
) -> None:
    """Set the caps of this machine's GPUs and hold them until Ctrl-C, then put them back."""
    from conserve_sglang.launcher.caps import caps_here, hold_caps, show_caps
    from conserve_sglang.tiermap import load_tier_map

    from .caps_view import print_plan, wait_for_signal

    with clean_failure():
        loaded = load_tier_map(tier_map)
        if not is_meant:
            print_plan(show_caps(loaded, host, allow_raise=allow_raise), as_json=False)
            typer.echo("nothing was set; add --write to set it")
            return
        holding = hold_caps(caps_here(loaded, host), typer.echo, allow_raise=allow_raise)
        if holding is None:
            typer.echo("the tier map asks for no cap on this machine")
            return
        try:
            wait_for_signal("held; Ctrl-C puts everything back")
        finally:
            holding.close()


@app.command()
def restore(
    is_forced: Annotated[
        bool,
        typer.Option("--force", help="Also where somebody else has set another limit since."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put back what a crash has left behind, by the records on disk (as doctor --restore)."""
    from .caps_view import run_restore

    with clean_failure():
        is_fine = run_restore(is_forced=is_forced, as_json=as_json)
    if not is_fine:
        raise typer.Exit(3)


@app.command()
def replay(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The power controller's log.")],
    as_json: JsonOption = False,
) -> None:
    """Play a log of the power controller through its law again; exit code 1 where it differs."""
    from conserve_sglang.energy.control_log import replay as play_again

    from .caps_view import print_replay

    with clean_failure():
        count, differing = play_again(log)
    print_replay(count, differing, as_json=as_json)
    if differing:
        raise typer.Exit(1)
