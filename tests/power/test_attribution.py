"""Joules of a window, split by the work done in it: they are all there, and where they belong."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.phase_log import Phase
from conserve_sglang.power.attribution import (
    Account,
    IdlePower,
    MeterWindow,
    Part,
    Span,
    attribute,
    union_s,
)

P0, D0 = WorkerId("p-0"), WorkerId("d-0")


def span(
    start_s: float,
    end_s: float,
    *,
    worker: WorkerId = D0,
    conversation: str | None = "a",
    phase: Phase = Phase.DECODE,
    joules: float | None = None,
) -> Span:
    return Span(worker, start_s, end_s, (Part(conversation, 1, phase, 1.0),), joules)


def window(joules: float, seconds: float = 10.0) -> MeterWindow:
    return MeterWindow(start_s=0.0, end_s=seconds, joules=joules)


def test_energy_of_a_window_full_of_one_batch_is_its_turns() -> None:
    bill = attribute(window(3000), [span(-5, 15)], idle_w=70.0)
    assert bill.work_j == {Account(D0, "decode", "a", 1): 3000}
    assert bill.idle_j == 0
    assert not bill.is_shared


def test_idle_time_is_billed_apart_at_idle_power() -> None:
    bill = attribute(window(3000), [span(0, 4)], idle_w=70.0)
    assert bill.idle_j == pytest.approx(6 * 70)
    assert bill.work_j[Account(D0, "decode", "a", 1)] == pytest.approx(3000 - 420)
    assert bill.busy_s == 4


def test_where_idle_power_is_not_known_idle_has_its_share_of_the_time() -> None:
    assert attribute(window(3000), [span(0, 4)], idle_w=None).idle_j == pytest.approx(1800)


def test_idle_is_never_more_than_was_measured() -> None:
    bill = attribute(window(100), [span(0, 1)], idle_w=70.0)
    assert (bill.idle_j, sum(bill.work_j.values())) == (100, 0)


def test_window_without_work_is_idle() -> None:
    bill = attribute(window(700), [span(20, 30)], idle_w=50.0)
    assert (bill.idle_j, bill.work_j) == (700, {})


def test_batches_share_by_time_and_with_predictions_by_energy() -> None:
    prefill, decode = span(0, 2, phase=Phase.PREFILL, joules=600), span(2, 10, joules=800)
    by_energy = attribute(window(2800), [prefill, decode], idle_w=None)
    assert by_energy.is_predicted
    assert sorted(by_energy.work_j.values()) == pytest.approx([1200, 1600])
    unknown = span(2, 10)
    by_time = attribute(window(2800), [prefill, unknown], idle_w=None)
    assert not by_time.is_predicted
    assert sorted(by_time.work_j.values()) == pytest.approx([560, 2240])


def test_span_that_reaches_over_the_edge_counts_with_its_part_inside() -> None:
    long, short = span(-10, 5, joules=300), span(5, 10, joules=100, conversation="b")
    bill = attribute(window(1000), [long, short], None)
    assert sorted(bill.work_j.values()) == pytest.approx([500, 500])


def test_workers_on_one_device_share_it_and_that_is_said() -> None:
    bill = attribute(window(1000), [span(0, 10), span(0, 10, worker=P0)], idle_w=70.0)
    assert bill.is_shared
    assert sorted(bill.work_j.values()) == pytest.approx([500, 500])
    assert bill.busy_s == 10


def test_batch_is_split_by_its_parts_weights() -> None:
    parts = (Part("a", 1, Phase.DECODE, 1.0), Part("b", 3, Phase.DECODE, 3.0))
    bill = attribute(window(1000), [Span(D0, 0, 10, parts)], None)
    assert bill.work_j[Account(D0, "decode", "a", 1)] == pytest.approx(250)
    assert bill.work_j[Account(D0, "decode", "b", 3)] == pytest.approx(750)


def test_parts_without_weight_share_evenly() -> None:
    parts = (Part("a", 1, Phase.DECODE, 0.0), Part("b", 3, Phase.DECODE, 0.0))
    bill = attribute(window(1000), [Span(D0, 0, 10, parts)], None)
    assert sorted(bill.work_j.values()) == [500, 500]


@pytest.mark.parametrize("wrong", [window(-1), window(10, seconds=0.0), window(float("nan"))])
def test_window_that_cannot_be_is_refused(wrong: MeterWindow) -> None:
    with pytest.raises(ValueError, match="a window of"):
        attribute(wrong, [], 70.0)


SECONDS = st.floats(-5, 15, allow_nan=False)
SPANS = st.lists(
    st.builds(
        lambda begin, length, worker, parts, joules: Span(
            WorkerId(worker), begin, begin + length, tuple(parts), joules
        ),
        SECONDS,
        st.floats(0, 8),
        st.sampled_from(["p-0", "d-0", "d-1"]),
        st.lists(
            st.builds(
                Part,
                st.none() | st.sampled_from(["a", "b", "c"]),
                st.integers(0, 3),
                st.sampled_from(Phase),
                st.floats(0, 1e6),
            ),
            max_size=4,
        ),
        st.none() | st.floats(0, 1e5),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(SPANS, st.floats(0, 1e6), st.floats(0.01, 10), st.none() | st.floats(0, 500))
def test_parts_and_idle_sum_to_what_was_measured(
    spans: list[Span], joules: float, seconds: float, idle_w: float | None
) -> None:
    bill = attribute(MeterWindow(start_s=0, end_s=seconds, joules=joules), spans, idle_w)
    assert math.isclose(bill.total_j, joules, rel_tol=1e-9, abs_tol=1e-9)
    assert 0 <= bill.busy_s <= seconds * (1 + 1e-9)
    assert bill.idle_j >= 0
    assert all(part >= 0 for part in bill.work_j.values())


@settings(deadline=None)
@given(SPANS, st.floats(0, 1e6), st.floats(0.5, 9.5))
def test_a_cut_in_a_window_of_steady_power_changes_no_sum(
    spans: list[Span], joules: float, cut_s: float
) -> None:
    whole = attribute(window(joules), spans, None)
    halves = [
        attribute(MeterWindow(start_s=a, end_s=b, joules=joules * (b - a) / 10), spans, None)
        for a, b in ((0.0, cut_s), (cut_s, 10.0))
    ]
    assert math.isclose(sum(half.total_j for half in halves), whole.total_j, abs_tol=1e-6)
    assert sum(half.idle_j for half in halves) == pytest.approx(
        whole.idle_j, abs=1e-6 * joules + 1e-6
    )


@settings(deadline=None)
@given(st.lists(st.tuples(SECONDS, SECONDS), max_size=8))
def test_covered_time_is_that_of_a_fine_grid(intervals: list[tuple[float, float]]) -> None:
    step = 0.01
    moments = [step * (number + 0.5) for number in range(1000)]
    seen = sum(any(a <= moment < b for a, b in intervals) for moment in moments) * step
    assert union_s(intervals, 0.0, 10.0) == pytest.approx(seen, abs=2 * step * (1 + len(intervals)))


def test_idle_power_is_the_least_seen_without_work() -> None:
    idle = IdlePower(known_w=60.0)
    assert idle.watts == 60.0
    idle.see(window(900), busy_s=1.0)
    assert idle.watts == 60.0
    idle.see(window(800), busy_s=0.0)
    idle.see(window(750), busy_s=0.0)
    idle.see(window(790), busy_s=0.0)
    idle.see(window(1, seconds=0.1), busy_s=0.0)
    assert idle.watts == 75.0


def test_short_windows_without_work_count_together_but_not_across_work() -> None:
    idle = IdlePower()
    idle.see(window(10, seconds=0.5), busy_s=0.0)
    idle.see(window(100, seconds=0.5), busy_s=0.2)
    idle.see(window(20, seconds=0.5), busy_s=0.0)
    assert idle.watts is None
    idle.see(window(30, seconds=0.5), busy_s=0.0)
    assert idle.watts == 50.0
