from typing import Any

import pytest

from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.plugin import intake
from conserve_sglang.plugin.queue_view import narrowed
from tests.plugin.stub import Mode, Req, Scheduler, inside


def stock_add(scheduler: Any, req: Req, is_retracted: bool = False) -> str:
    if scheduler.disaggregation_mode is Mode.NULL:
        scheduler.waiting_queue.append(req)
        return "queued"
    scheduler.disagg_decode_prealloc_queue.retracted_queue.append(req)
    return "preallocated"


def mode_seen(scheduler: Any, recv_req: Req) -> Mode:
    mode: Mode = scheduler.disaggregation_mode
    return mode


def test_a_marked_request_without_a_room_is_taken_in_as_on_a_plain_server() -> None:
    scheduler = Scheduler()
    seen = intake.handle_generate_request(inside()[0], mode_seen, scheduler, Req("a"))
    assert seen is Mode.NULL
    assert scheduler.disaggregation_mode is Mode.DECODE


@pytest.mark.parametrize(
    ("room", "key"),
    [
        (None, None),
        (None, "user-17"),
        (5, LocalLimits(max_uncached=1, min_cached=0).to_routing_key()),
    ],
    ids=["unmarked", "foreign key", "marked with a room"],
)
def test_any_other_request_takes_the_stock_way(room: int | None, key: str | None) -> None:
    request = Req("a")
    request.bootstrap_room, request.routing_key = room, key
    seen = intake.handle_generate_request(inside()[0], mode_seen, Scheduler(), request)
    assert seen is Mode.DECODE


def test_the_mode_comes_back_when_intake_fails() -> None:
    scheduler = Scheduler()

    def fails(scheduler: Any, recv_req: Req) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        intake.handle_generate_request(inside()[0], fails, scheduler, Req("a"))
    assert scheduler.disaggregation_mode is Mode.DECODE


def test_a_local_request_waits_for_prefill() -> None:
    scheduler = Scheduler()
    intake.add_request_to_queue(inside()[0], stock_add, scheduler, Req("a"))
    assert scheduler.queued == ["a"]


def test_a_transferred_request_takes_the_stock_way() -> None:
    scheduler = Scheduler()
    way = intake.add_request_to_queue(inside()[0], stock_add, scheduler, Req("a", local=False))
    assert way == "preallocated"


@pytest.mark.parametrize(
    ("resident", "reason"), [(40, "prefix_missing"), (0, "prefix_missing")], ids=str
)
def test_a_request_beyond_its_limits_is_refused(resident: int, reason: str) -> None:
    scheduler = Scheduler()
    context, adapter = inside()
    intake.add_request_to_queue(context, stock_add, scheduler, Req("a", resident=resident))
    assert scheduler.queued == []
    assert [(rid, status) for rid, _, status in adapter.refused] == [("a", 409)]
    assert reason in adapter.refused[0][1]


def test_an_append_that_is_too_large_is_refused() -> None:
    context, adapter = inside()
    request = Req("a")
    request.origin_input_ids = [1] * 161
    intake.add_request_to_queue(context, stock_add, Scheduler(), request)
    assert "append_too_large cached=60 uncached=101" in adapter.refused[0][1]


def test_a_request_bound_to_end_with_an_error_is_not_refused() -> None:
    scheduler = Scheduler()
    request = Req("a", resident=0)
    request.to_finish = object()
    intake.add_request_to_queue(inside()[0], stock_add, scheduler, request)
    assert scheduler.queued == ["a"]


def test_a_retracted_request_with_tokens_is_restored_by_stock() -> None:
    request = Req("a")
    request.output_ids = [5]
    way = intake.add_request_to_queue(inside()[0], stock_add, Scheduler(), request, True)
    assert way == "preallocated"


def test_a_request_retracted_before_its_first_token_starts_over() -> None:
    scheduler = Scheduler()
    request = Req("a")
    request.has_backup = True
    intake.add_request_to_queue(inside()[0], stock_add, scheduler, request, True)
    assert scheduler.queued == ["a"]
    assert not request.has_backup


def test_a_request_whose_grammar_is_ready_while_transfers_are_taken_is_put_aside() -> None:
    scheduler = Scheduler(Req("t", local=False, kv=True))
    with narrowed(scheduler, lambda req: req.kv_held):
        intake.add_request_to_queue(inside()[0], stock_add, scheduler, Req("a"))
        assert scheduler.queued == ["t"]
    assert scheduler.queued == ["t", "a"]


def test_the_mark_survives_splitting() -> None:
    part = intake.get_item(lambda batch, index: Req("part", local=False), Req("batch"), 0)
    assert part.routing_key == Req("batch").routing_key
