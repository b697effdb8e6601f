"""From bursts to medians and paired ratios, and these as tables."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

Burst = dict[str, Any]
_RIVAL = "sglang-router"
_MEASURES = ("requests_per_s", "events_per_s", "router_cpu_us", "router_rss_mib", "others_cores")


def summary(bursts: Sequence[Burst]) -> list[dict[str, Any]]:
    """One row for each case and candidate: medians of the quiet bursts, of all if none was."""
    rows = []
    for case in _names(bursts, "case"):
        for candidate in _names(bursts, "candidate"):
            own = [b for b in bursts if b["case"] == case and b["candidate"] == candidate]
            if not own:
                continue  # not every candidate plays every case
            quiet = [b for b in own if not b["is_noisy"]]
            used = quiet or own
            row: dict[str, Any] = {"case": case, "candidate": candidate}
            row |= {"num_bursts": len(own), "num_quiet": len(quiet)}
            row |= {name: median(b[name] for b in used) for name in _MEASURES}
            for name in ("latency_us", "lateness_us"):
                row[name] = _median_of(b[name] for b in used)
            row["num_errors"] = sum(b["num_errors"] for b in own)
            rows.append(row)
    return rows


def ratios(bursts: Sequence[Burst]) -> list[dict[str, Any]]:
    """Each candidate against sglang-router in the same round: median, least and most."""
    found = []
    at = {(b["round"], b["case"], b["candidate"]): b for b in bursts}
    for case in _names(bursts, "case"):
        for candidate in _names(bursts, "candidate"):
            pairs = [
                (b, at[number, case, _RIVAL])
                for (number, *rest), b in at.items()
                if rest == [case, candidate] and (number, case, _RIVAL) in at
            ]
            if not pairs or candidate in (_RIVAL, "direct"):
                continue
            found.append(
                {
                    "case": case,
                    "candidate": candidate,
                    "requests_per_s": _spread(
                        ours["requests_per_s"] / theirs["requests_per_s"]
                        for ours, theirs in pairs
                        if theirs["requests_per_s"]  # long streams may all end outside a burst
                    ),
                    "router_cpu": _spread(
                        theirs["router_cpu_us"] / ours["router_cpu_us"] for ours, theirs in pairs
                    ),
                    "p50": _spread(
                        ours["latency_us"]["p50"] / theirs["latency_us"]["p50"]
                        for ours, theirs in pairs
                        if ours["latency_us"] and theirs["latency_us"]
                    ),
                }
            )
    return found


def print_tables(record: Mapping[str, Any]) -> None:
    """The medians, then the ratios."""
    print(
        f"{'case':16}{'candidate':15}{'req/s':>9}{'p50 us':>11}{'p99 us':>11}"
        f"{'router us':>10}{'RSS MiB':>9}{'quiet':>7}  errors"
    )
    for row in record["rows"]:
        latency = row["latency_us"] or {"p50": 0.0, "p99": 0.0}
        quiet = f"{row['num_quiet']}/{row['num_bursts']}"
        print(
            f"{row['case']:16}{row['candidate']:15}{row['requests_per_s']:9,.0f}"
            f"{latency['p50']:11,.0f}{latency['p99']:11,.0f}{row['router_cpu_us']:10.1f}"
            f"{row['router_rss_mib']:9.1f}{quiet:>7}{row['num_errors']:8}"
        )
        if row["lateness_us"]:
            late = row["lateness_us"]
            print(
                f"{'':31}{row['events_per_s']:9,.0f} events/s; an event late by"
                f" {late['p50']:,.0f} us p50, {late['p99']:,.0f} us p99"
            )
    if record["ratios"]:
        print("\nagainst sglang-router, paired by round: median (least-most)")
        print(f"{'case':16}{'candidate':15}{'req/s':>20}{'CPU, theirs/ours':>20}{'p50':>20}")
    for row in record["ratios"]:
        cells = [_cell(row[name]) for name in ("requests_per_s", "router_cpu", "p50")]
        print(f"{row['case']:16}{row['candidate']:15}" + "".join(f"{cell:>20}" for cell in cells))


def _cell(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "-"
    return f"{spread['median']:.2f} ({spread['min']:.2f}-{spread['max']:.2f})"


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    found = list(values)
    if not found:
        return None
    return {"median": median(found), "min": min(found), "max": max(found)}


def _median_of(figures: Iterable[Mapping[str, float] | None]) -> dict[str, float] | None:
    found = [figure for figure in figures if figure]
    if not found:
        return None
    return {name: median(figure[name] for figure in found) for name in found[0]}


def _names(bursts: Iterable[Burst], key: str) -> list[str]:
    return list(dict.fromkeys(burst[key] for burst in bursts))
