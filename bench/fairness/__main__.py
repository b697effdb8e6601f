"""Does one tenant's burst raise another tenant's time to its first effective token?

Tenant B opens conversations steadily; tenant A opens many at once, every minute. Three modes: B
alone; both, in arrival order with no bound on prefill backlogs; both, in fair order. Live: the real
router and fake workers that prefill at an A40's pace, `--speed` times faster. Simulated: the same
conversations in virtual time, where decode steps grow with their batch.

    python -m bench.fairness
"""

import argparse
import asyncio
from typing import Any

from bench.fairness.live import play
from bench.fairness.scenario import Scenario
from bench.fairness.simulated import simulate, throughput_by_bound
from bench.harness import save
from conserve_sglang.core.tier import Overload

NOT_MEASURED = "live: decode steps that grow with their batch, real engines, a real network"


def main() -> None:
    """Play, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed", type=float, default=5.0, help="times faster than an A40")
    parser.add_argument("--duration", type=float, default=300.0, help="seconds of an A40's time")
    parser.add_argument("--only-simulated", action="store_true")
    options = parser.parse_args()
    scenario = Scenario(duration_s=options.duration)
    bound = Overload().max_prefill_backlog_tokens
    record: dict[str, Any] = {
        "scenario": {name: getattr(scenario, name) for name in Scenario.__slots__},
        "max_prefill_backlog_tokens": bound,
        "speed": options.speed,
        "not_measured": NOT_MEASURED,
    }
    if not options.only_simulated:
        record["live"] = asyncio.run(play(scenario, options.speed))
    record["simulated"] = simulate(scenario, bound)
    record["by_bound"] = throughput_by_bound(scenario)
    for name in ("live", "simulated"):
        if name in record:
            _show(name, record[name])
    print("backlog bound   16,000 tokens: turns/s, B's TTFT s   500 tokens: turns/s, B's TTFT s")
    for row in record["by_bound"]:
        print(
            f"{row['max_prefill_backlog_tokens']:13,}   {row['long_per_s']:22.2f}"
            f" {row['long_b_ttft_s']:11.2f}   {row['short_per_s']:20.2f}"
            f" {row['short_b_ttft_s']:11.2f}"
        )
    print(save("fairness", record))


def _show(name: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"{name}, tenant B: TTFET s p50 / p95 (x alone)     first turn's TTFT s p50 / p95")
    alone = rows["alone"]["b"]
    for mode, row in rows.items():
        b = row["b"]
        ratios = [b[f"ttfet_s_p{level}"] / alone[f"ttfet_s_p{level}"] for level in (50, 95)]
        print(
            f"  {mode:12} {b['ttfet_s_p50']:6.2f} / {b['ttfet_s_p95']:6.2f}"
            f"   ({ratios[0]:.2f} / {ratios[1]:.2f})"
            f"   {b['first_ttft_s_p50']:6.2f} / {b['first_ttft_s_p95']:6.2f}"
            f"   answered {b['num_answered']} of {b['num_conversations']}"
        )


if __name__ == "__main__":
    main()
