"""conserve-sglang top: a live view of a running router and its workers."""

from typing import Annotated

import typer

from .fail import clean_failure
from .options import JsonOption
from .reach import Reach, reaches_a_router


@reaches_a_router
def top(
    reach: Reach,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.2, metavar="SECONDS", help="Time between looks.")
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, with the rates of one interval.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show workers, KV occupancy, queues, rates and latencies of a running router; q ends it."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from .top_feed import Feed
    from .top_screen import run_live
    from .top_view import picture

    with clean_failure():
        feed = Feed(reach.control_port())
        if as_json:
            typer.echo(json.dumps(asdict(feed.once(interval_s)), indent=2))
        elif once:
            console = Console()
            console.print(picture(feed.once(interval_s), feed.url, console.width))
        else:
            run_live(feed, interval_s)
