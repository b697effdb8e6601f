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
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Or - for standard input.", show_default=False)
    ],
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

    FILE may be packed with gzip, or a folder of files. Exit code 2 where nothing in it can be used.
    """
    from conserve_sglang.traces import STDIN, read_trace
    from conserve_sglang.workload import histograms_of, shape_of
    from conserve_sglang.workload.histogram import TOOL_GAP

    from .trace_view import as_document, print_shape

    with clean_failure():
        trace = read_trace(file, format_name, tokenizer)
    shape, name = shape_of(trace.conversations), file.name if file != STDIN else "standard input"
    histograms = [
        each
        for each in histograms_of(trace.conversations)
        if trace.has_gaps or each.name != TOOL_GAP
    ]
    if as_json:
        typer.echo(json.dumps(as_document(trace, shape, histograms), indent=2))
    else:
        print_shape(name, trace, shape, histograms)
    with clean_failure():
        if not trace.conversations:
            raise TraceError(f"{name}: nothing in it can be used")
        if figure is not None:
            from conserve_sglang.traces.figure import draw

            draw(figure, name, shape, histograms)
            if not as_json:
                typer.echo(f"figure: {figure}")
