"""The counters add up over processes, and become well-formed series."""

import json
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.worker import Role, WorkerReport
from conserve_sglang.dispatch import FailureCause, WorkerLoad
from conserve_sglang.policy.api import PlacementReason
from conserve_sglang.telemetry.metrics import Histogram, Outcome, RouterMetrics
from conserve_sglang.telemetry.prometheus import MAX_TENANTS, Exporter, Gauges

LOAD = WorkerLoad(
    worker_id=WorkerId("d0"),
    role=Role.DECODE,
    tier=TierName("lean"),
    takes_turns=True,
    is_up=True,
    capacity_tokens=1000,
    resident_tokens=400,
    reserved_tokens=100,
    free_tokens=500,
    backlog_tokens=0,
    num_conversations=3,
)
GAUGES = Gauges(
    queue_depths={"phase_one": 1, "tail": 0, "retry": 0},
    num_open_turns=2,
    num_conversations=3,
    workers=(LOAD,),
)
REPORT = WorkerReport(held_tokens=350, used_tokens=90, num_running=2, num_waiting=None)


def counted(ttft_s: float = 0.2, tenant: str = "acme") -> RouterMetrics:
    metrics = RouterMetrics()
    metrics.turns[Outcome.ANSWERED] += 2
    metrics.placements[PlacementReason.LARGE_APPEND] += 1
    metrics.failures[FailureCause.DECODER_FAILED] += 1
    metrics.kv_transferred_tokens += 500
    metrics.timings_of("lean", "prefill").ttft.observe(ttft_s)
    metrics.timings_of("lean", "prefill").tbt.observe(0.012)
    metrics.tenant(tenant).output_tokens += 7
    return metrics


def series(metrics: RouterMetrics, gauges: Gauges = GAUGES) -> dict[str, float]:
    text = Exporter(lambda: metrics, lambda: gauges, "conserve").text().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_what_processes_counted_adds_up_after_a_journey_as_json() -> None:
    total = RouterMetrics()
    for each in (counted(0.2), counted(3.0), counted(3.0, "other co")):
        total.merge(json.loads(json.dumps(each.to_plain())))
    assert total.turns[Outcome.ANSWERED] == 6
    assert total.placements[PlacementReason.LARGE_APPEND] == 3
    assert total.kv_transferred_tokens == 1500
    timings = total.timings["lean", "prefill"]
    assert dict(timings.ttft.buckets())["0.25"] == 1.0
    assert dict(timings.ttft.buckets())["+Inf"] == 3.0
    assert timings.ttft.sum_s == pytest.approx(6.2)
    assert {name: each.output_tokens for name, each in total.tenants.items()} == {
        "acme": 14,
        "other co": 7,
    }


def test_merging_changes_nothing_of_what_was_merged() -> None:
    one, total = counted(), RouterMetrics()
    total.merge(one.to_plain())
    total.timings_of("lean", "prefill").ttft.observe(1.0)
    assert sum(one.timings["lean", "prefill"].ttft.counts) == 1


def test_recent_latencies_are_kept_where_they_are_asked_for_and_the_newest_stay() -> None:
    assert RouterMetrics().to_plain()["recent"] is None
    total = RouterMetrics()
    for late in (0.5, 0.0):
        one = RouterMetrics(keeps_latencies=True)
        assert one.recent is not None
        for second in range(1000):
            one.recent.tbt.append((float(second), second + 1 + late, 0.05))
        total.merge(json.loads(json.dumps(one.to_plain())))
    assert total.recent is not None
    ends = [ended for _, ended, _ in total.recent.tbt]
    assert len(ends) == 2 * 512
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == (489.0, 1000.5)
    assert not total.recent.ttfet


def test_a_histogram_counts_a_value_on_a_bound_below_it() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.1, 0.5, 2.0):
        histogram.observe(seconds)
    assert histogram.buckets() == [("0.1", 1.0), ("1.0", 2.0), ("+Inf", 3.0)]


def test_series_carry_tier_and_role() -> None:
    found = series(counted())
    assert found["conserve_router_ttft_seconds_bucket{le=0.25,role=prefill,tier=lean}"] == 1
    assert found["conserve_router_tbt_seconds_sum{role=prefill,tier=lean}"] == 0.012
    assert found["conserve_router_phase_one_reentries_total{cause=large_append}"] == 1
    assert found["conserve_worker_kv_resident_tokens{role=decode,tier=lean,worker=d0}"] == 400
    assert any(name.startswith("process_open_fds") for name in found)
    assert any(name.startswith("conserve_router_build_info{policy=conserve") for name in found)


def test_what_a_worker_reports_stands_beside_the_ledger_and_is_left_out_where_it_is_not_told() -> (
    None
):
    labels = "{role=decode,tier=lean,worker=d0}"
    found = series(counted(), replace(GAUGES, reports={WorkerId("d0"): REPORT}))
    assert found["conserve_worker_kv_held_tokens" + labels] == 350
    assert found["conserve_worker_kv_difference_tokens" + labels] == -50
    assert found["conserve_worker_running_turns" + labels] == 2
    assert "conserve_worker_waiting_turns" + labels not in found
    assert "conserve_worker_kv_held_tokens" + labels not in series(counted())


def test_tenants_beyond_the_bound_share_one_series_and_none_ever_loses_its_own() -> None:
    metrics = RouterMetrics()
    for number in range(MAX_TENANTS + 30):
        metrics.tenant(f"t{number:03}").turns += 1
    exporter = Exporter(lambda: metrics, lambda: GAUGES)
    first = exporter.text().decode()
    metrics.tenant("a-first-by-name").turns += 5
    second = exporter.text().decode()
    assert first.count("conserve_tenant_turns_total{") == MAX_TENANTS + 1
    assert 'conserve_tenant_turns_total{tenant="other"} 30.0' in first
    assert 'conserve_tenant_turns_total{tenant="other"} 35.0' in second
    assert 'conserve_tenant_turns_total{tenant="t000"} 1.0' in second
