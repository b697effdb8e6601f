"""conserve-sglang trace: look at files of conversations."""

import json
from pathlib import Path
from typing import Annotated

import typer

from conserve_sglang.core.errors import TraceError

from .fail import clean_failure
from .options import JsonOption, TokenizerOption

app = typer.Typer(
    help="Look at files of conversations.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _group() -> None:
    pass


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    format_name: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="If it is not recognised.")
    ] = None,
    tokenizer: TokenizerOption = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw it to this .svg, .png or .pdf file too."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a trace's shape: turns, lengths, where its prefill is, gaps, lines not used.

    FILE may be a folder of such files. Exit code 2 where nothing in it can be used.
    """
    from conserve_sglang.traces import read_trace
    from conserve_sglang.workload import histograms_of, shape_of

    from .trace_view import as_document, print_shape

    with clean_failure():
        trace = read_trace(file, format_name, tokenizer)
    shape, histograms = shape_of(trace.conversations), histograms_of(trace.conversations)
    if as_json:
        typer.echo(json.dumps(as_document(trace, shape, histograms), indent=2))
    else:
        print_shape(file, trace, shape, histograms)
    with clean_failure():
        if not trace.conversations:
            raise TraceError(f"{file}: nothing in it can be used")
        if figure is not None:
            from conserve_sglang.traces.figure import draw

            draw(figure, file.name, shape, histograms)
