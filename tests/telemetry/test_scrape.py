"""Rates and quantiles between two scrapes, and the overview made of them."""

from dataclasses import replace
from functools import partial

import pytest
from rich.console import Console

from cli.top_view import picture
from conserve_sglang.telemetry.energy import EnergyCollector, EnergyLabels, EnergyReading
from conserve_sglang.telemetry.overview import Overview, overview
from conserve_sglang.telemetry.prometheus import BreakerReading, Exporter
from conserve_sglang.telemetry.scrape import quantile, rate, read_scrape
from tests.telemetry.test_metrics import GAUGES, REPORT, counted

BEFORE = """
t_total{k="a"} 10
t_total{k="b"} 1
h_bucket{le="0.1"} 4
h_bucket{le="1.0"} 4
h_bucket{le="+Inf"} 4
"""
AFTER = """
t_total{k="a"} 30
t_total{k="b"} 2
h_bucket{le="0.1"} 6
h_bucket{le="1.0"} 14
h_bucket{le="+Inf"} 14
"""


def test_rates_are_per_second_and_unknown_after_a_restart() -> None:
    before, after = read_scrape(BEFORE, 100.0), read_scrape(AFTER, 110.0)
    assert rate(before, after, "t_total") == pytest.approx(2.1)
    assert rate(before, after, "t_total", k="a") == pytest.approx(2.0)
    assert rate(after, read_scrape(BEFORE, 120.0), "t_total") is None
    assert rate(before, after, "unheard_of") is None


def test_quantiles_are_of_the_time_between_and_interpolated() -> None:
    before, after = read_scrape(BEFORE, 0.0), read_scrape(AFTER, 1.0)
    assert quantile(before, after, "h", 0.1) == pytest.approx(0.05)
    assert quantile(before, after, "h", 0.6) == pytest.approx(0.1 + 0.9 * 4 / 8)
    assert quantile(None, after, "h", 0.5) == pytest.approx(0.1 + 0.9 * 1 / 8)
    assert quantile(after, after, "h", 0.5) is None
    assert quantile(before, after, "none", 0.5) is None


def test_an_observation_beyond_the_last_bound_counts_as_that_bound() -> None:
    beyond = read_scrape('h_bucket{le="1.0"} 0\nh_bucket{le="+Inf"} 5\n', 0.0)
    assert quantile(None, beyond, "h", 0.5) == 1.0


def test_the_overview_reads_what_the_router_exports() -> None:
    standing = BreakerReading(1, 1)
    name = GAUGES.workers[0].worker_id
    gauges = replace(GAUGES, reports={name: REPORT}, breakers={name: standing})
    metrics, texts = counted(), []
    for more_tokens in (0, 400):
        metrics.output_tokens += more_tokens
        texts.append(Exporter(lambda: metrics, lambda: gauges, "conserve").text().decode())
    before, after = read_scrape(texts[0], 0.0), read_scrape(texts[1], 10.0)
    seen = overview(before, after, 1e12)
    assert seen.router.output_tokens_per_s == pytest.approx(40.0)
    assert seen.router.policy == "conserve"
    assert seen.router.queued_turns == {"phase_one": 1, "tail": 0, "retry": 0}
    assert seen.router.latency_s["ttft"] == (None, None)
    (worker,) = seen.workers
    assert (worker.state, worker.breaker) == ("up", "half_open")
    assert (worker.resident_tokens, worker.held_tokens, worker.num_running) == (400, 350, 2)
    assert worker.num_waiting is None
    assert worker.watts is None


def with_energy(origin: str) -> Overview:
    """Two scrapes, 10 s apart: d0 used 500 J more."""
    scrapes = []
    for at_s, joules in ((0.0, 100.0), (10.0, 600.0)):
        labels = EnergyLabels("d0", "lean", "decode", origin, "own")
        reading = EnergyReading(joules={labels: joules}, watts={labels: 50.0})
        others = (EnergyCollector(partial(_same, reading)),)
        text = Exporter(counted, lambda: GAUGES, "conserve", others).text().decode()
        scrapes.append(read_scrape(text, at_s))
    before, after = scrapes
    return overview(before, after, 0.0)


def _same(reading: EnergyReading) -> EnergyReading:
    return reading


@pytest.mark.parametrize("origin", ["measured", "modelled"])
def test_power_is_shown_with_its_origin(origin: str) -> None:
    seen = with_energy(origin)
    assert (seen.router.watts, seen.router.energy_origin) == (50.0, origin)
    assert (seen.workers[0].watts, seen.workers[0].power_origin) == (50.0, origin)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(picture(seen, "http://r:1", 200))
    assert captured.get().count(origin) == 2
