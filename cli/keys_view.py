"""How API keys are listed: never more than the beginning of a hash."""

from typing import Any

from rich.console import Console
from rich.table import Table

from conserve_sglang.tiermap.keys import TenantKeys

SHOWN_DIGITS = 12


def as_rows(entries: tuple[TenantKeys, ...]) -> list[dict[str, Any]]:
    """One row a tenant."""
    return [
        {
            "tenant": entry.tenant.tenant_id,
            "weight": entry.tenant.weight,
            "may_place": entry.tenant.may_place,
            "keys": [digest.hex()[:SHOWN_DIGITS] for digest in entry.digests],
        }
        for entry in entries
    ]


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows for people."""
    table = Table(box=None, pad_edge=False)
    for column in ("tenant", "weight", "may place", "keys"):
        table.add_column(column)
    for row in rows:
        may_place = "yes" if row["may_place"] else "no"
        keys = " ".join(row["keys"]) or "none"
        table.add_row(row["tenant"], f"{row['weight']:g}", may_place, keys)
    Console().print(table)
