"""What the figures say of the abstract's claims and of the goals."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

SATURATION = 1.634


def rows_of(rows: Iterable[Row], caps: str, load: float, interval: int = 0) -> dict[str, Row]:
    """The rows of one setting by policy."""
    return {
        row["policy"]: row
        for row in rows
        if (row["caps_w"], row["load"], row["interval"]) == (caps, load, interval)
    }


def mean(row: Row, name: str, accounting: str = "one_clock") -> float:
    """A figure's mean over the seeds."""
    value = row[accounting][name]
    return float(value[0] if isinstance(value, list) else value)


def change(new: float, old: float) -> float:
    """How much larger, relatively."""
    return new / old - 1


def claim_ttfet(rows: Sequence[Row], caps: str) -> dict[str, dict[str, float]]:
    """ConServe's p95 TTFET against the per-turn baseline's at saturation, by accounting and error
    rate: what the abstract puts at -51.08 %."""
    here = rows_of(rows, caps, SATURATION)
    found: dict[str, dict[str, float]] = {}
    for accounting in ("papers", "one_clock"):
        ours = mean(here["ConServe, blind"], "ttfet_p95", accounting)
        found[accounting] = {
            name: change(ours, mean(here[name], "ttfet_p95", accounting))
            for name in ("coin flip 10 %", "coin flip 50 %")
        }
    mixed = mean(here["ConServe, blind"], "ttfet_p95", "papers")
    found["mixed"] = {
        name: change(mixed, mean(here[name], "ttfet_p95", "one_clock"))
        for name in ("coin flip 10 %", "coin flip 50 %")
    }
    return found


def claim_energy(rows: Sequence[Row]) -> dict[str, float]:
    """ConServe's tokens/J against the per-turn baseline's at saturation, both at the same caps, and
    with capped decoders against itself without: what the abstract puts at +7.51 % and +22.75 %."""
    name = "energy"
    plain, capped = (rows_of(rows, caps, SATURATION) for caps in ("300/300", "300/200"))
    ours, theirs = "ConServe, blind", "coin flip 10 %"
    return {
        "against coin flip 10 %, 300/300": change(
            mean(plain[ours], "tokens_per_j", name), mean(plain[theirs], "tokens_per_j", name)
        ),
        "against coin flip 10 %, both 300/200": change(
            mean(capped[ours], "tokens_per_j", name), mean(capped[theirs], "tokens_per_j", name)
        ),
        "300/200 against itself at 300/300": change(
            mean(capped[ours], "tokens_per_j", name), mean(plain[ours], "tokens_per_j", name)
        ),
    }


def beside(
    rows: Sequence[Row], load: float, caps: str
) -> tuple[Row, list[tuple[Row, list[float]]]]:
    """The baseline with the least p95 TTFET, and each of ours that meets the SLO at least half as
    often as the best does, with its changes of p95 TTFET, p95 TBT and tokens/J against that one."""
    here = able(rows_of(rows, caps, load).values())
    rival = min((row for row in here if not row["ours"]), key=lambda row: mean(row, "ttfet_p95"))
    figures = (("ttfet_p95", "one_clock"), ("tbt_p95", "one_clock"), ("tokens_per_j", "energy"))
    return rival, [
        (row, [change(mean(row, *each), mean(rival, *each)) for each in figures])
        for row in here
        if row["ours"]
    ]


def at_equal_slo(
    rows: Sequence[Row], load: float, ours_caps: str, their_caps: str
) -> tuple[str, float, str, float, float] | None:
    """The baseline with most tokens/J, by how much the best of ours that meets the SLO at least as
    often has more, and by how much a fleet had that never idled; None where none of ours meets it
    as often. Baselines that meet it less than half as often
    as the best do not count: joules saved by serving nobody in time."""
    theirs = [row for row in rows_of(rows, their_caps, load).values() if not row["ours"]]
    ours = [row for row in rows_of(rows, ours_caps, load).values() if row["ours"]]
    rival = max(able(theirs), key=lambda row: mean(row, "tokens_per_j", "energy"))
    equal = [row for row in ours if mean(row, "slo") >= mean(rival, "slo")]
    if not equal:
        return None
    best_of_ours = max(equal, key=lambda row: mean(row, "tokens_per_j", "energy"))
    value = mean(rival, "tokens_per_j", "energy")
    gain = change(mean(best_of_ours, "tokens_per_j", "energy"), value)
    idle_share = mean(rival, "idle_share", "energy")
    return rival["policy"], value, best_of_ours["policy"], gain, 1 / (1 - idle_share) - 1


def able(rows: Iterable[Row]) -> list[Row]:
    """Those that meet the SLO at least half as often as the best of them."""
    found = list(rows)
    most = max(mean(row, "slo") for row in found)
    return [row for row in found if mean(row, "slo") >= most / 2]


def front(rows: Iterable[Row]) -> set[str]:
    """The policies that no other one beats in both p95 TTFET and p95 last-turn TBT."""
    points = {row["policy"]: (mean(row, "ttfet_p95"), mean(row, "tbt_p95")) for row in rows}
    return {
        name
        for name, (x, y) in points.items()
        if not any(
            a <= x and b <= y and (a < x or b < y)
            for other, (a, b) in points.items()
            if other != name
        )
    }


def best(rows: Iterable[Row], name: str, *, ours: bool, largest: bool = False) -> tuple[str, float]:
    """The best policy of ours, or of the others, in one figure, of those that meet the SLO at least
    half as often as the best does: who serves few at a time is fast for these few."""
    found = [(mean(row, name), row["policy"]) for row in able(rows) if row["ours"] is ours]
    value, policy = max(found) if largest else min(found)
    return policy, value
