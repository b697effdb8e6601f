"""conserve-sglang tiers: check and look at tier maps."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import HostOption, JsonOption, TierMapArgument


class Part(Enum):
    """What of a tier map runs on a machine."""

    ROUTER = "router"
    WORKERS = "workers"
    ALL = "all"


HereOption = Annotated[
    Part | None,
    typer.Option(
        "--here",
        metavar="PART",
        help="What of it runs on this machine: router, workers or all. A file or variable that is"
        " missing for that is an error; without --here it is a note.",
    ),
]
app = typer.Typer(help="Check and look at tier maps.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", show_default=False)],
    here: HereOption = None,
    host: HostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read tier maps as strictly as the launcher does; exit 2 if one is wrong.

    Files and environment variables that a map names are looked for on this machine.
    """
    from .tiers_view import check_files

    results = check_files(files, here, host)
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        for result in results:
            is_wrong = result["error"] is not None
            typer.echo(result["error"] if is_wrong else f"{result['file']}: ok", err=is_wrong)
            for notice in result["notices"]:
                typer.echo(f"{result['file']}: note: {notice}")
            for problem in () if is_wrong else result["missing"]:
                typer.echo(f"{result['file']}: note: on this machine: {problem}")
    if any(result["error"] is not None for result in results):
        raise typer.Exit(2)


@app.command()
def show(file: TierMapArgument, as_json: JsonOption = False) -> None:
    """Show the workers of a tier map with their ports, GPUs and knobs."""
    from conserve_sglang.tiermap import load_tier_map

    from .tiers_view import as_document, print_table

    with clean_failure():
        tier_map = load_tier_map(file)
    if as_json:
        typer.echo(json.dumps(as_document(tier_map), indent=2))
    else:
        print_table(tier_map)


@app.command()
def schema() -> None:
    """Print the JSON Schema of tier maps."""
    from conserve_sglang.tiermap import json_schema_text

    typer.echo(json_schema_text(), nl=False)
