"""conserve-sglang profiles: what is known of GPUs, and where from."""

from typing import Annotated

import typer

from .fail import clean_failure
from .options import JsonOption

app = typer.Typer(
    help="What GPUs take, in seconds and watts, to serve a model.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.callback()
def profiles(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the profiles that come with this package, with where their numbers are from."""
    if context.invoked_subcommand is not None:
        return
    from conserve_sglang.profiles import shipped_profile, shipped_profiles

    from .profiles_view import print_list

    with clean_failure():
        print_list([shipped_profile(name) for name in shipped_profiles()], as_json=as_json)


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A shipped profile's name, or a YAML file.", show_default=False
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show a profile: its source, its points, and how well they are told from each other."""
    from conserve_sglang.profiles import open_profile

    from .profiles_view import print_profile

    with clean_failure():
        print_profile(open_profile(name), as_json=as_json)
