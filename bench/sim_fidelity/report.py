"""What was found, as tables and as a record."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.sim_fidelity import compare
from bench.sim_fidelity.compare import MEASURES, Pair
from bench.sim_fidelity.phases import PhaseError, described, handoff_error, phase_errors
from conserve_sglang.sim import PerfModel

GOAL = 0.15
ByPolicy = Mapping[str, Sequence[Pair]]


def results(by_policy: ByPolicy, perf: PerfModel) -> dict[str, Any]:
    """Errors by policy and measure, by phase, and the order of policies."""
    return {
        "policies": {
            policy: {
                "same_kind_of_placement": round(compare.same_places(found), 4),
                **{
                    name: compare.rounded(compare.errors_of(found, measure))
                    for name, measure in MEASURES.items()
                },
            }
            for policy, found in by_policy.items()
        },
        "phases": [described(error) for error in _phases(by_policy, perf)],
        "order": {
            name: compare.rounded(compare.order_of(by_policy, measure))
            for name, measure in MEASURES.items()
        },
    }


def print_all(title: str, by_policy: ByPolicy, perf: PerfModel, console: Console) -> None:
    """Policies and measures, phases, the orders, and how the goal is met."""
    _print_errors(title, by_policy, console)
    _print_phases(title, _phases(by_policy, perf), console)
    for name, measure in MEASURES.items():
        order = compare.order_of(by_policy, measure)
        console.print(f"{name}: live {' < '.join(order.live)}")
        console.print(
            f"  simulated {' < '.join(order.simulated)}; {order.pairs_alike} of {order.num_pairs}"
            f" pairs that differ by more than {order.margin:.0%} live are in the same order"
        )
    errors = [
        compare.errors_of(found, measure).median_error
        for found in by_policy.values()
        for measure in MEASURES.values()
    ]
    met = sum(error <= GOAL for error in errors)
    console.print(
        f"{title}: median error at most {GOAL:.0%} in {met} of {len(errors)}"
        f" (policy, measure), the greatest {max(errors):.0%}\n"
    )


def _phases(by_policy: ByPolicy, perf: PerfModel) -> list[PhaseError]:
    pairs = [pair for found in by_policy.values() for pair in found]
    alone = handoff_error(pairs)
    return phase_errors(pairs, perf) + ([] if alone is None else [alone])


def _print_errors(title: str, by_policy: ByPolicy, console: Console) -> None:
    table = Table(title=title)
    for column in ("policy", "measure", "live p50 ms", "sim p50 ms", "median error", "bias",
                   "p10 .. p90", "of means", "noise"):  # fmt: skip
        table.add_column(column, justify="left" if column in {"policy", "measure"} else "right")
    for policy, found in by_policy.items():
        for name, measure in MEASURES.items():
            e = compare.errors_of(found, measure)
            table.add_row(
                policy if name == "TTFT" else "",
                name,
                f"{1e3 * e.live_median_s:.1f}",
                f"{1e3 * e.simulated_median_s:.1f}",
                f"{e.median_error:.0%}",
                f"{e.bias:+.0%}",
                f"{e.p10:+.0%} .. {e.p90:+.0%}",
                f"{e.of_means:+.0%}",
                f"{e.noise:.0%}",
                end_section=name == "E2E",
            )
    console.print(table)


def _print_phases(title: str, errors: Sequence[PhaseError], console: Console) -> None:
    table = Table(title=f"{title}, by phase; told: what unit costs alone say, ms")
    for column in ("turns", "phase", "number", "live p50 ms", "sim p50 ms", "median error", "bias",
                   "told"):  # fmt: skip
        table.add_column(
            column, justify="left" if column in {"turns", "phase", "told"} else "right"
        )
    for e in errors:
        told = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in e.told.items())
        table.add_row(
            e.kind, e.phase, str(e.num_turns), f"{1e3 * e.live_s:.1f}",
            f"{1e3 * e.simulated_s:.1f}", f"{e.median_error:.0%}", f"{e.bias:+.0%}", told,
        )  # fmt: skip
    console.print(table)
