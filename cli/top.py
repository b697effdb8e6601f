"""conserve-sglang top: a live view of a running router and its workers."""

from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import JsonOption


def top(
    tier_map: Annotated[
        Path | None,
        typer.Option(
            "--tier-map", metavar="FILE", help="Its router, with its admin key and certificate."
        ),
    ] = None,
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="Else: the router's control port.")
    ] = "http://127.0.0.1:30001",
    key_env: Annotated[
        str | None,
        typer.Option("--key-env", metavar="NAME", help="Variable that holds the admin key."),
    ] = None,
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

    from .top_feed import Feed, from_tier_map, from_url
    from .top_screen import run_live
    from .top_view import picture

    with clean_failure():
        feed = Feed(from_url(url, key_env) if tier_map is None else from_tier_map(tier_map))
        if as_json:
            typer.echo(json.dumps(asdict(feed.once(interval_s)), indent=2))
        elif once:
            console = Console()
            console.print(picture(feed.once(interval_s), feed.url, console.width))
        else:
            run_live(feed, interval_s)
