"""The conserve-sglang command."""

from typing import Annotated

import typer

from . import (
    caps,
    dashboards,
    doctor,
    energy,
    keys,
    launch,
    plan,
    profile,
    profiles,
    route,
    simulate,
    tiers,
    top,
    trace,
    workers,
)

app = typer.Typer(
    name="conserve-sglang",
    help="Conversation-level prefill/decode disaggregation for SGLang.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(launch.launch)
app.command()(route.route)
app.command()(doctor.doctor)
app.command()(simulate.simulate)
app.command()(plan.plan)
app.command()(dashboards.dashboards)
app.command()(top.top)
app.command()(energy.energy)
app.add_typer(caps.app, name="caps")
app.command()(profile.profile)
app.add_typer(keys.app, name="keys")
app.add_typer(profiles.app, name="profiles")
app.add_typer(tiers.app, name="tiers")
app.add_typer(trace.app, name="trace")
app.add_typer(workers.app, name="workers")


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from conserve_sglang import __version__
        from conserve_sglang.router.tuning import is_compiled

        typer.echo(f"{__version__} (compiled)" if is_compiled() else __version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the installed command."""
    app()
