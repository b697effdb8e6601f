"""Tables and figures of what `bench.paper.run` saved: results/paper.md and results/paper_*.svg.

python -m bench.paper.show
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from bench.harness import RESULTS
from bench.paper import findings
from bench.paper.candidates import THREE_TIERS
from bench.paper.findings import Row, mean, rows_of

NAMES = ("paper", "paper_claude_code", "paper_bursty")
COLUMNS = (
    ("ttfet_p50", "TTFET p50"),
    ("ttfet_p95", "p95"),
    ("ttfet_geomean", "gmean"),
    ("tbt_p50", "TBT p50"),
    ("tbt_p95", "p95"),
    ("e2e_p95", "E2E p95"),
    ("slo", "SLO met"),
)
ENERGY = (("tokens_per_j", "tokens/J"), ("output_tokens_per_j", "output/J"))
PERCENT = {"slo"}


def main() -> None:
    """Write the tables, draw the figures."""
    from bench.paper import figures

    found = {
        name: json.loads(path.read_text())
        for name in NAMES
        if (path := RESULTS / f"{name}.json").exists()
    }
    lines = ["# Policies compared", "", *_head()]
    for name, record in found.items():
        lines += _section(name, record)
    (RESULTS / "paper.md").write_text("\n".join(lines) + "\n")
    print(RESULTS / "paper.md")
    for path in figures.draw(found, RESULTS):
        print(path)


def _head() -> Iterator[str]:
    yield "Written by `python -m bench.paper.show`. All times and joules are modelled, from unit"
    yield "measurements alone; nothing was fitted to a result. Latencies are multiples of the same"
    yield "conversation's run alone; means over the seeds, in brackets least and largest. Of TBT it"
    yield "is the last turn's. SLO: five times the stand-alone mean of TTFET, TBT and E2E, all met."
    yield "A star: simulated only, SGLang's servers cannot run it. One clock: latencies count"
    yield "from the conversation's arrival."


def _section(name: str, record: dict[str, Any]) -> Iterator[str]:
    rows: Sequence[Row] = record["rows"]
    loads = sorted({row["load"] for row in rows})
    error = record["predictor_error_of_ampd_like"]
    slo = record["slo_s"]
    yield from ("", f"## {name}: {record['workload']}", "")
    yield f"{record['num_conversations']} conversations, {record['num_turns']} turns,"
    yield f"{record['seeds']} seeds. A load of 1 is {record['load_1_in_conversations_per_s']:.3g}"
    yield f"conversations/s. SLO: TTFET {slo['ttfet']:.1f} s, TBT {slo['tbt'] * 1e3:.0f} ms, E2E"
    yield f"{slo['e2e']:.1f} s. The length predictor of `ampd-like` errs by {error['p50']:.0%} in"
    yield f"the median, {error['p95']:.0%} at p95."
    if name == "paper":
        yield from _claims(rows)
    yield from _goals(rows, loads)
    yield from _beside(rows, loads)
    yield from _joules(rows, loads)
    for caps in sorted({row["caps_w"] for row in rows}, reverse=True):
        for load in loads:
            shown = list(rows_of(rows, caps, load).values())
            yield from _table(_title(record, caps, load, shown), shown, "one_clock")
    if name == "paper":
        title = f"300/300 W, load {findings.SATURATION}, the paper's accounting"
        here = rows_of(rows, "300/300", findings.SATURATION)
        yield from _table(title, list(here.values()), "papers")
    for load in loads[-2:]:
        title = f"300/300 W, load {load}, one clock, 4 decode steps between two prefill steps"
        yield from _table(title, list(rows_of(rows, "300/300", load, 4).values()), "one_clock")


def _title(record: dict[str, Any], caps: str, load: float, here: Sequence[Row]) -> str:
    title = f"{caps} W, load {load}, one clock"
    if caps == THREE_TIERS:
        title += (
            f", three tiers: one decoder for contexts of at most {record['short_tokens']} tokens"
        )
    seeds = {row["seeds"] for row in here}
    if seeds and max(seeds) < record["seeds"]:
        title += f" ({max(seeds)} seed{'s' if max(seeds) > 1 else ''})"
    return title


def _claims(rows: Sequence[Row]) -> Iterator[str]:
    yield from ("", "### The abstract's claims", "")
    yield "p95 TTFET of ConServe (blind) against the per-turn baseline at 1.634 conversations/s,"
    yield "which the abstract puts at -51.08 %:"
    yield from ("", "| caps | accounting | coin flip 10 % | coin flip 50 % |", "|---|---|---|---|")
    words = {
        "papers": "the paper's: from the start of turn 1's prefill",
        "one_clock": "one clock: from arrival, both",
        "mixed": "ConServe from the start of its prefill, the baseline from arrival",
    }
    for caps in ("300/300", "300/200"):
        for accounting, changes in findings.claim_ttfet(rows, caps).items():
            cells = " | ".join(f"{value:+.1%}" for value in changes.values())
            yield f"| {caps} | {words[accounting]} | {cells} |"
    if "energy" in rows[0]:
        yield from (
            "",
            "Its tokens/J, modelled, which the abstract puts at +7.51 %, and at +22.75 %",
        )
        yield from ("more with two tiers:", "", "| what | change |", "|---|---|")
        for what, value in findings.claim_energy(rows).items():
            yield f"| {what} | {value:+.1%} |"


def _joules(rows: Sequence[Row], loads: Sequence[float]) -> Iterator[str]:
    if "energy" not in rows[0]:
        return
    yield from ("", "### Tokens per joule at equal SLO attainment (modelled)", "")
    yield "The baseline with most tokens/J among those that meet the SLO at least half as often as"
    yield "the best, and the best of ours that meets it at least as often as that one."
    yield ""
    yield "The last column is what would be gained without any idling, the work being the same: by"
    yield "these watts a step's joules are its KV tokens' and its prompts', wherever they are."
    yield ""
    yield "| load | our caps | their caps | best baseline | best of ours | gain | no idling |"
    yield "|---|---|---|---|---|---|---|"
    pairs = [(a, b) for a in ("300/300", "300/200") for b in ("300/300", "300/200") if b <= a]
    for ours_caps, their_caps in [*pairs, ("300/200", "300/300")]:
        for load in loads:
            if not all(rows_of(rows, caps, load) for caps in (ours_caps, their_caps)):
                continue
            found = findings.at_equal_slo(rows, load, ours_caps, their_caps)
            text = "| none of ours meets the SLO as often | | |"
            if found is not None:
                rival, value, mine, gain, most = found
                text = f"{rival}: {value:.1f} | {mine} | {gain:+.1%} | {most:+.1%} |"
            yield f"| {load} | {ours_caps} | {their_caps} | {text}"


def _beside(rows: Sequence[Row], loads: Sequence[float]) -> Iterator[str]:
    if "energy" not in rows[0]:
        return
    yield from ("", "### Each of ours beside one baseline (300/300 W, one clock)", "")
    yield "The baseline is that with the least p95 TTFET of those that meet the SLO at least half"
    yield "as often as the best. Less is better, but for tokens/J and the SLO."
    yield from (
        "",
        "| load | baseline | ours | p95 TTFET | p95 TBT | tokens/J | SLO met: theirs, ours |",
    )
    yield "|---|---|---|---|---|---|---|"
    for load in loads:
        rival, ours = findings.beside(rows, load, "300/300")
        for row, changes in ours:
            cells = " | ".join(f"{value:+.1%}" for value in changes)
            met = f"{mean(rival, 'slo'):.1%}, {mean(row, 'slo'):.1%}"
            yield f"| {load} | {rival['policy']} | {row['policy']} | {cells} | {met} |"


def _goals(rows: Sequence[Row], loads: Sequence[float]) -> Iterator[str]:
    yield from ("", "### Ours beside the best of the others (300/300 W, one clock)", "")
    yield from ("Of policies that meet the SLO at least half as often as the best does.", "")
    pairs = [f"{what}: best other | best of ours" for what in ("p95 TTFET", "p95 TBT", "SLO met")]
    yield f"| load | {' | '.join(pairs)} | on the front of (p95 TTFET, p95 TBT) |"
    table = ["|---|---|---|---|---|---|---|---|"]
    for load in loads:
        here = list(rows_of(rows, "300/300", load).values())
        cells = [f"{load}"]
        for name, largest in (("ttfet_p95", False), ("tbt_p95", False), ("slo", True)):
            for ours in (False, True):
                policy, value = findings.best(here, name, ours=ours, largest=largest)
                text = f"{value:.1%}" if largest else f"{value:.2f}"
                cells.append(f"{text} {policy}")
        mine = {row["policy"] for row in here if row["ours"]}
        cells.append(", ".join(sorted(findings.front(here) & mine)) or "none of ours")
        table.append("| " + " | ".join(cells) + " |")
    yield from table


def _table(title: str, rows: Sequence[Row], accounting: str) -> Iterator[str]:
    if not rows:
        return
    yield from ("", f"### {title}", "")
    columns = [*COLUMNS, *(ENERGY if "energy" in rows[0] else ())]
    yield "| policy | " + " | ".join(label for _, label in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for row in rows:
        star = " *" if row["simulated_only"] else ""
        cells = [_cell(row, name, accounting) for name, _ in COLUMNS]
        cells += [f"{mean(row, name, 'energy'):.2f}" for name, _ in columns[len(COLUMNS) :]]
        yield f"| {row['policy']}{star} | " + " | ".join(cells) + " |"


def _cell(row: Row, name: str, accounting: str) -> str:
    value, spread = mean(row, name, accounting), row[accounting][name]
    if not isinstance(spread, list):
        return f"{value:.2f}"
    _, least, most = spread
    if name in PERCENT:
        return f"{value:.1%} ({least:.0%}-{most:.0%})"
    return f"{value:.2f} ({least:.2f}-{most:.2f})"


if __name__ == "__main__":
    main()
