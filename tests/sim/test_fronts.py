"""What a turn takes beside its workers' steps, where a profile tells it."""

from dataclasses import replace

import pytest

from conserve_sglang.profiles import FrontPoint
from conserve_sglang.sim import ConversationRecord, PerfModel, WorkerLoss, perf_model_of
from tests.profiles.builders import a_profile
from tests.sim.builders import a_deployment, a_plan, play

PROFILE = a_profile()
REQUEST = (FrontPoint(tokens=100, seconds=0.010), FrontPoint(tokens=1100, seconds=0.020))
HANDOFF = (FrontPoint(tokens=1100, seconds=0.150), FrontPoint(tokens=100, seconds=0.140))


def played(perf: PerfModel, *losses: WorkerLoss) -> ConversationRecord:
    """One conversation on a prefiller and two decoders with these unit costs."""
    deployment = a_deployment("p0", "d0", "d1")
    workers = tuple(replace(worker, perf=perf) for worker in deployment.workers)
    deployment = replace(deployment, workers=workers, losses=losses)
    return play(deployment, [a_plan("c", (600, 50), (100, 50))])["c"]


def test_what_a_profile_does_not_tell_is_nothing_and_said_to_be() -> None:
    perf = perf_model_of(PROFILE)
    assert perf.unknown == ("request", "handoff", "first_handoff")
    assert perf.request_s(600) == perf.handoff_s(600) == 0.0
    assert perf_model_of(replace(PROFILE, request=REQUEST)).unknown == ("handoff", "first_handoff")


def test_a_handoff_is_what_the_request_and_the_move_leave_of_it() -> None:
    perf = perf_model_of(replace(PROFILE, request=REQUEST, handoff=HANDOFF))
    assert perf.unknown == ("first_handoff",)
    assert perf.request_s(600) == pytest.approx(0.015)
    for point in HANDOFF:
        parts = (perf.request_s, perf.transfer_s, perf.handoff_s)
        assert sum(part(point.tokens) for part in parts) == pytest.approx(point.seconds)
    alone = perf_model_of(replace(PROFILE, handoff=HANDOFF))
    assert alone.handoff_s(100) == pytest.approx(0.140 - alone.transfer_s(100))


def test_nothing_is_charged_that_is_less_than_the_move() -> None:
    quick = perf_model_of(replace(PROFILE, handoff=(FrontPoint(tokens=64, seconds=1e-4),)))
    assert quick.handoff_s(600) == 0.0


def test_a_turn_takes_what_was_measured() -> None:
    """The first turn through a pair all of a handoff point, the second at its decoder a request."""
    perf = perf_model_of(replace(PROFILE, request=REQUEST, handoff=HANDOFF))
    first, second = played(perf).turns
    assert first.prefiller is not None
    assert first.ttft_s == pytest.approx(0.145 + perf.prefill(0, 600))
    assert second.prefiller is None
    assert second.ttft_s == pytest.approx(perf.request_s(750) + perf.prefill(650, 750))
    bare = played(perf_model_of(PROFILE)).turns
    for turn, without in zip((first, second), bare, strict=True):
        assert turn.last_token_at_s - turn.first_token_at_s == pytest.approx(
            without.last_token_at_s - without.first_token_at_s
        )


@pytest.mark.parametrize("at_s", [0.005, 0.1, 0.15])
@pytest.mark.parametrize("lost", ["p0", "d0"])
def test_a_worker_lost_on_the_way_in_or_over_costs_no_turn(lost: str, at_s: float) -> None:
    """While the request is on its way, and while the KV is handed over."""
    perf = perf_model_of(replace(PROFILE, request=REQUEST, handoff=HANDOFF))
    loss = WorkerLoss(worker_id=lost, at_s=at_s, noticed_after_s=0.01, back_after_s=0.2)  # type: ignore[arg-type]
    record = played(perf, loss)
    assert [turn.output_tokens for turn in record.turns] == [50, 50]
