"""conserve-sglang workers: look at the workers of a running router and change them."""

import json
from typing import Annotated, Any

import typer

from .fail import clean_failure
from .options import JsonOption
from .reach import Reach, reaches_a_router

app = typer.Typer(
    help="Look at the workers of a running router and change them, through its control port.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
WorkerArgument = Annotated[
    str, typer.Argument(metavar="WORKER", help="The worker's name.", show_default=False)
]
WaitOption = Annotated[
    float, typer.Option("--timeout-s", min=0.0, max=3600.0, help="How long to wait for it.")
]


@app.command("list")
@reaches_a_router
def list_workers(reach: Reach, as_json: JsonOption = False) -> None:
    """Show each worker with its state, circuit breaker and load."""
    from .workers_view import print_workers

    workers = _ask(reach, "GET", "/admin/workers")[1]["workers"]
    if as_json:
        typer.echo(json.dumps(workers, indent=2))
    else:
        print_workers(workers)


@app.command()
@reaches_a_router
def drain(worker: WorkerArgument, reach: Reach, timeout_s: WaitOption = 60.0) -> None:
    """Give a worker no new turns, and wait until none runs there; exit 1 if one still does."""
    path = _path(worker, "drain")
    status, found = _ask(reach, "POST", path, waits_s=timeout_s, timeout_s=timeout_s)
    _tell(status == 200, worker, "drained", found)


@app.command()
@reaches_a_router
def undrain(worker: WorkerArgument, reach: Reach) -> None:
    """Give a drained worker turns again."""
    found = _ask(reach, "POST", _path(worker, "undrain"))[1]
    typer.echo(f"{worker}: {found['state']}")


@app.command()
@reaches_a_router
def add(
    worker: WorkerArgument,
    reach: Reach,
    tier: Annotated[str, typer.Option("--tier", help="The tier it belongs to.")],
    port: Annotated[int, typer.Option("--port", help="Where it listens.")],
    host: Annotated[str | None, typer.Option("--host", help="Default: the tier's.")] = None,
    bootstrap_port: Annotated[
        int | None, typer.Option("--bootstrap-port", help="Of a prefill worker's bootstrap server.")
    ] = None,
) -> None:
    """Add a worker that runs already; it gets turns once the router has met it."""
    body: dict[str, Any] = {"id": worker, "tier": tier, "port": port}
    if host is not None:
        body["host"] = host
    if bootstrap_port is not None:
        body["bootstrap_port"] = bootstrap_port
    status, found = _ask(reach, "POST", "/admin/workers", body=body)
    was_new = "added" if status == 201 else "was there already"
    typer.echo(f"{worker}: {was_new}, {found['state']}")


@app.command()
@reaches_a_router
def remove(
    worker: WorkerArgument,
    reach: Reach,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for running turns.")] = False,
    timeout_s: WaitOption = 60.0,
) -> None:
    """Drain a worker and let the router forget it; exit 1 if a turn still runs there."""
    query = {"timeout_s": timeout_s, **({"force": 1} if force else {})}
    status, found = _ask(reach, "DELETE", _path(worker), waits_s=timeout_s, **query)
    _tell(status == 200, worker, "removed", found)


def _ask(reach: Reach, method: str, path: str, **options: Any) -> tuple[int, Any]:
    with clean_failure():
        return reach.control_port().ask(method, path, **options)


def _path(worker: str, what: str = "") -> str:
    from .control_port import worker_path

    return worker_path(worker, what)


def _tell(is_done: bool, worker: str, done: str, found: dict[str, Any]) -> None:
    if is_done:
        typer.echo(f"{worker}: {done}")
        return
    typer.echo(
        f"{worker}: {found['running_turns']} turns still run there; it gets no new ones and will"
        f" be {done} when they are over",
        err=True,
    )
    raise typer.Exit(1)
