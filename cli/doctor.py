"""conserve-sglang doctor: check an installation without starting a server."""

from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import JsonOption


def doctor(
    new_manifest: Annotated[
        bool,
        typer.Option("--new-manifest", help="Draft a manifest for the SGLang version found."),
    ] = False,
    sglang_root: Annotated[
        Path | None,
        typer.Option(
            "--sglang-root", metavar="DIR", help="Package folder of SGLang; else the installed one."
        ),
    ] = None,
    is_restore: Annotated[
        bool,
        typer.Option("--restore", help="Put back power caps and clocks that a crash has left."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check SGLang, the plugin's manifest, the transfer engine, GPUs and permissions."""
    from conserve_sglang.launcher.doctor import draft_manifest, run_checks

    from .doctor_view import print_checks

    if is_restore:
        from .caps import restore

        restore(is_forced=False, as_json=as_json)
        return
    with clean_failure():
        if new_manifest:
            typer.echo(draft_manifest(sglang_root), nl=False)
            return
        is_fine = print_checks(run_checks(sglang_root), as_json=as_json)
    if not is_fine:
        raise typer.Exit(1)
