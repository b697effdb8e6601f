"""What turns cannot be served without, as the policy sees it, and what a late one is told."""

import pytest

from conserve_sglang.dispatch import (
    DispatchSettings,
    Tick,
    WorkerDraining,
    WorkerLost,
    WorkerUp,
)
from conserve_sglang.policy.api import RejectReason
from tests.builders import D0, P0, Desk, a_worker, an_arrival
from tests.dispatch.talk import rejected, sent, settled

DECODER, PREFILLER = RejectReason.NO_DECODER, RejectReason.NO_PREFILLER


def lacks(desk: Desk) -> tuple[RejectReason | None, RejectReason | None]:
    """Of a new conversation, and of a pinned one."""
    return desk.dispatcher.lack(is_new=True), desk.dispatcher.lack(is_new=False)


@pytest.mark.parametrize(
    ("policy", "workers", "expected"),
    [
        ("conserve", ("p0", "d0"), (None, None)),
        ("conserve", ("d0",), (PREFILLER, None)),
        ("conserve", ("p0",), (DECODER, DECODER)),
        ("conserve", (), (DECODER, DECODER)),
        ("stock-pd", ("d0",), (PREFILLER, PREFILLER)),
        ("stock-pd", ("p0", "d0"), (None, None)),
        ("round-robin", ("d0",), (PREFILLER, PREFILLER)),
        ("colocated", ("d0",), (None, None)),
        ("colocated", ("p0",), (DECODER, DECODER)),
        ("work-conserving", ("d0",), (PREFILLER, None)),
        ("work-conserving", ("p0", "d0"), (None, None)),
        ("work-conserving", ("m0",), (None, None)),
    ],
)
def test_the_policy_says_which_workers_it_needs(
    policy: str, workers: tuple[str, ...], expected: tuple[RejectReason | None, ...]
) -> None:
    assert lacks(Desk(*workers, policy=policy)) == expected


def test_a_worker_that_drains_is_lacking_and_one_that_is_full_is_not() -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(reserve_output_tokens=100))
    desk.tell(an_arrival(1, "a", 9_900))
    assert lacks(desk) == (None, None)
    desk.tell(WorkerDraining(worker_id=P0))
    assert lacks(desk) == (PREFILLER, None)
    desk.tell(WorkerDraining(worker_id=D0))
    assert lacks(desk) == (DECODER, DECODER)


def test_asking_changes_nothing() -> None:
    asked, not_asked = settled("p0", "d0", "d1"), settled("p0", "d0", "d1")
    lacks(asked)
    for desk in (asked, not_asked):
        desk.tell(an_arrival(2, "b"))
    assert asked.dispatcher.worker_loads() == not_asked.dispatcher.worker_loads()


@pytest.mark.parametrize(
    ("lost", "reason"), [((P0,), PREFILLER), ((D0,), DECODER), ((P0, D0), DECODER)]
)
def test_a_turn_that_waited_for_a_worker_that_did_not_come_is_told_so(
    lost: tuple[str, ...], reason: RejectReason
) -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(queue_timeout_s=30.0))
    for name in lost:
        desk.tell(WorkerLost(worker_id=name))  # type: ignore[arg-type]
    assert desk.tell(an_arrival(1)) == [], "it may come back"
    desk.now = 30.0
    told = rejected(desk.tell(Tick()))
    assert (told.reason, told.retry_after_s) == (reason, None)


def test_a_turn_that_waited_for_room_is_told_that() -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(queue_timeout_s=30.0))
    desk.tell(an_arrival(1, "a", 9_000))
    desk.tell(an_arrival(2, "b", 9_000))
    desk.now = 30.0
    told = rejected(desk.tell(Tick()))
    assert told.reason is RejectReason.QUEUE_TIMEOUT
    assert told.retry_after_s is not None


def test_a_turn_goes_when_the_worker_comes_back_in_time() -> None:
    desk = Desk("d0", settings=DispatchSettings(queue_timeout_s=30.0))
    assert desk.tell(an_arrival(1)) == []
    desk.now = 29.0
    assert sent(desk.tell(WorkerUp(spec=a_worker("p0")))).prefiller == P0
