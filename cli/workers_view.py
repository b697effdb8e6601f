"""The workers of a running router as a table."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table


def print_workers(workers: Iterable[dict[str, Any]]) -> None:
    """One row a worker, then what is wrong with which."""
    console = Console()
    table = Table(box=None)
    for column in ("worker", "role", "address", "state", "breaker"):
        table.add_column(column)
    for column in ("turns", "conv.", "KV"):
        table.add_column(column, justify="right")
    reasons = []
    for worker in workers:
        table.add_row(*_cells(worker))
        if worker.get("reason"):
            reasons.append(f"{worker['id']}: {worker['reason']}")
    console.print(table)
    for reason in reasons:
        console.print(reason, soft_wrap=True, markup=False)


def _cells(worker: dict[str, Any]) -> tuple[str, ...]:
    held = "-"
    if worker.get("kv_capacity_tokens"):
        taken = worker["kv_capacity_tokens"] - worker["kv_free_tokens"]
        held = f"{100 * taken / worker['kv_capacity_tokens']:.0f} %"
    return (
        worker["id"],
        worker["role"],
        f"{worker['host']}:{worker['port']}",
        worker["state"],
        worker["breaker"],
        str(worker["running_turns"]),
        str(worker.get("conversations", "-")),
        held,
    )
