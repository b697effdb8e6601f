"""Options that mean the same in every command."""

from pathlib import Path
from typing import Annotated

import typer

TierMapOption = Annotated[
    Path, typer.Option("--tier-map", metavar="FILE", help="The deployment file (YAML).")
]
TierMapArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The deployment file (YAML).", show_default=False)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON for a program instead of text.")
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer", metavar="FILE", help="A model's tokenizer.json, to count text in tokens."
    ),
]
HostOption = Annotated[
    str | None,
    typer.Option(
        "--host", metavar="NAME", help="The tier map's name for this machine; else found out."
    ),
]
StateOption = Annotated[
    bool,
    typer.Option(
        "--state/--no-state", help="Whether the router's conversations survive its restart."
    ),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        metavar="N",
        help="Router processes that serve clients; by default router.processes of the tier map.",
    ),
]
LogLevelOption = Annotated[
    str, typer.Option("--log-level", help="debug, info, warning or error; the log is on stderr.")
]
LogFormatOption = Annotated[
    str, typer.Option("--log-format", help="text, or json: one object a line.")
]
AccessLogOption = Annotated[
    bool,
    typer.Option("--access-log", help="Log a line for each request answered, without its text."),
]
CapsOption = Annotated[
    bool,
    typer.Option(
        "--caps/--no-caps",
        help="Whether the tier map's power caps and SM clocks are set, and put back at the end;"
        " needs root.",
    ),
]
