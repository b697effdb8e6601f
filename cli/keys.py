"""conserve-sglang keys: make, list and revoke the API keys of a deployment."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import JsonOption

app = typer.Typer(
    help="Make, list and revoke API keys. A running router reads the file again on SIGHUP.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_File = Annotated[Path, typer.Option("--file", metavar="FILE", help="The key file (YAML).")]


@app.command()
def new(
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Whose key it is.")],
    file: _File,
    weight: Annotated[
        float | None, typer.Option(help="The tenant's share of what is scarce; a new one's is 1.")
    ] = None,
    may_place: Annotated[
        bool | None,
        typer.Option("--may-place/--may-not-place", help="Whether it may ask where to send turns."),
    ] = None,
) -> None:
    """Print a new key, this once; only its hash goes into the file."""
    from conserve_sglang.tiermap.keys import new_key

    with clean_failure():
        typer.echo(new_key(file, tenant, weight=weight, may_place=may_place))


@app.command("list")
def list_(file: _File, as_json: JsonOption = False) -> None:
    """Show the tenants and the beginning of each key's hash."""
    from conserve_sglang.tiermap.keys import load_keys

    from .keys_view import as_rows, print_table

    with clean_failure():
        rows = as_rows(load_keys(file))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_table(rows)


@app.command()
def revoke(
    key: Annotated[
        str,
        typer.Argument(
            metavar="HASH",
            help="The beginning of its hash, as keys list shows it.",
            show_default=False,
        ),
    ],
    file: _File,
) -> None:
    """Take a key out of the file."""
    from conserve_sglang.tiermap.keys import revoke_key

    with clean_failure():
        typer.echo(f"revoked a key of {revoke_key(file, key)}")
