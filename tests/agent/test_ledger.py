"""The books of one host: windows wait for the batches in them, and nothing is lost."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.agent.ledger import ATTRIBUTED, MOST_WAIT_S, OWN, Ledger
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.phase_log import Batch, Launched, Opened, Phase, Work
from conserve_sglang.energy.meter import Origin

P0, D0 = WorkerId("p-0"), WorkerId("d-0")


def a_ledger(**users: tuple[WorkerId, ...]) -> Ledger:
    users = users or {"gpu": (D0,)}
    workers = {worker for each in users.values() for worker in each}
    ledger = Ledger(users, dict.fromkeys(workers), dict.fromkeys(users, 50.0))
    ledger.settled_to_s = 0.0
    return ledger


def batch(
    start_s: float, end_s: float, conversation: str | None = "a", phase: Phase = Phase.PREFILL
) -> Batch:
    return Batch(start_s, end_s, 1, (Work(conversation, 1, phase, 100, 0),))


def measure(ledger: Ledger, end_s: float, joules: float, device: str = "gpu") -> None:
    ledger.measured(end_s - 1, end_s, {device: (joules, Origin.MEASURED)})


def by_phase(ledger: Ledger) -> dict[str, float]:
    found: dict[str, float] = {}
    for counter, joules in ledger.counters.items():
        found[counter.phase] = found.get(counter.phase, 0.0) + joules
    return found


def test_window_waits_until_the_batch_under_way_in_it_is_over() -> None:
    ledger = a_ledger()
    ledger.hear(D0, Launched(0.5))
    for end_s in (1, 2, 3):
        measure(ledger, end_s, 300)
    assert ledger.settle(now=10.0) == 0
    ledger.hear(D0, batch(0.5, 2.5))
    assert ledger.settle(now=10.0) == 3
    assert by_phase(ledger)["prefill"] == pytest.approx(275 + 300 + 275)
    assert by_phase(ledger)["idle"] == pytest.approx(2 * 0.5 * 50)
    assert ledger.settled_to_s == 3


def test_window_is_not_settled_before_decode_steps_in_it_were_written() -> None:
    ledger = a_ledger()
    measure(ledger, 1, 300)
    assert ledger.settle(now=1.5) == 0
    assert ledger.settle(now=2.1) == 1


def test_worker_that_died_in_a_batch_holds_the_books_up_no_longer_than_its_restart() -> None:
    ledger = a_ledger()
    ledger.hear(D0, Launched(0.5))
    measure(ledger, 1, 300)
    ledger.hear(D0, Opened(2, 5.0, 1))
    assert ledger.settle(now=6.0) == 1


def test_batch_that_is_never_heard_of_again_holds_them_up_for_a_while() -> None:
    ledger = a_ledger()
    ledger.hear(D0, Launched(0.5))
    measure(ledger, 1, 300)
    assert ledger.settle(now=MOST_WAIT_S) == 0
    assert ledger.settle(now=MOST_WAIT_S + 1) == 1
    measure(ledger, MOST_WAIT_S + 2, 300)
    assert ledger.settle(now=MOST_WAIT_S + 4) == 1  # and not the windows after it
    ledger.hear(D0, batch(0.5, 1.0))
    assert ledger.late_s == pytest.approx(0.5)


def test_turns_are_told_by_settling_so_that_none_is_told_twice() -> None:
    ledger = a_ledger()
    ledger.hear(D0, batch(0.0, 1.5))
    measure(ledger, 1, 300)
    ledger.settle(now=3.0)
    first, _ = ledger.rows_since(0)
    measure(ledger, 2, 200)
    ledger.settle(now=4.0)
    second, has_forgotten = ledger.rows_since(first[-1].number)
    assert [(r.conversation, r.turn, r.joules) for r in first] == [("a", 1, 300)]
    assert [r.joules for r in second] == [pytest.approx(175)]
    assert not has_forgotten


def test_requests_of_no_turn_are_counted_by_phase_alone() -> None:
    ledger = a_ledger()
    ledger.hear(D0, batch(0.0, 1.0, conversation=None))
    measure(ledger, 1, 300)
    ledger.settle(now=3.0)
    assert by_phase(ledger)["prefill"] == 300
    assert ledger.rows_since(0)[0] == []


def test_device_of_two_workers_is_labelled_attributed_and_its_idle_shared() -> None:
    ledger = a_ledger(gpu=(P0, D0), other=(D0,))
    ledger.hear(D0, batch(0.0, 1.0))
    ledger.measured(0, 1, {"gpu": (300, Origin.MEASURED), "other": (100, Origin.MEASURED)})
    ledger.measured(1, 2, {"gpu": (60, Origin.MEASURED), "other": (40, Origin.MEASURED)})
    ledger.settle(now=4.0)
    told = {(c.worker, c.phase, c.split): joules for c, joules in ledger.counters.items()}
    assert told[D0, "prefill", ATTRIBUTED] == 300
    assert told[D0, "prefill", OWN] == 100
    assert told[P0, "idle", ATTRIBUTED] == told[D0, "idle", ATTRIBUTED] == 30
    assert told[D0, "idle", OWN] == 40


def test_counter_that_was_reset_costs_its_window_and_no_more() -> None:
    ledger = a_ledger()
    measure(ledger, 1, -5_000)
    measure(ledger, 2, 300)
    assert ledger.settle(now=5.0) == 2
    assert ledger.num_refused_windows == 1
    assert math.fsum(ledger.counters.values()) == 300


def test_modelled_joules_keep_that_name() -> None:
    ledger = a_ledger()
    ledger.hear(D0, batch(0.0, 1.0))
    ledger.measured(0, 1, {"gpu": (300, Origin.MODELLED)})
    ledger.settle(now=3.0)
    assert {counter.origin for counter in ledger.counters} == {"modelled"}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 9), st.floats(0.01, 3), st.sampled_from(["a", "b"])), max_size=9
    ),
    st.lists(st.floats(0, 1000), min_size=10, max_size=10),
)
def test_counters_sum_to_what_was_measured(
    batches: list[tuple[float, float, str]], joules: list[float]
) -> None:
    ledger = a_ledger(gpu=(P0, D0))
    for number, (start_s, seconds, conversation) in enumerate(sorted(batches)):
        worker = (P0, D0)[number % 2]
        ledger.hear(worker, batch(start_s, start_s + seconds, conversation))
    for number, each in enumerate(joules):
        measure(ledger, number + 1, each)
    assert ledger.settle(now=20.0) == 10
    assert math.fsum(ledger.counters.values()) == pytest.approx(math.fsum(joules), rel=1e-9)


def test_reading_out_of_turn_makes_no_window_of_its_own() -> None:
    ledger = a_ledger()
    ledger.hear(D0, batch(0.0, 1.05))
    ledger.measured(0.0, 1.0, {"gpu": (300.0, Origin.MEASURED)})
    ledger.measured(1.0, 1.05, {"gpu": (0.0, Origin.MEASURED)})  # between two steps of a counter
    ledger.measured(1.05, 2.0, {"gpu": (50.0, Origin.MEASURED)})
    assert [end for _, end in ledger.due(now=10.0)] == [1.05, 2.0]
    ledger.settle(now=10.0)
    assert by_phase(ledger) == {"idle": 50.0, "prefill": 300.0}
