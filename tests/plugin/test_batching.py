from typing import Any

from conserve_sglang.plugin import abort, batching
from tests.plugin.stub import AbortReq, Batch, Mode, Req, Scheduler, inside


def stock_next(scheduler: Any, *, running_batch: Batch) -> str:
    return "stock"


def step(scheduler: Scheduler, running: Batch | None = None) -> Any:
    running = running if running is not None else Batch()
    return batching.get_next_batch(inside()[0], stock_next, scheduler, running)


def test_without_local_work_the_step_is_stock() -> None:
    assert step(Scheduler(Req("t", local=False, kv=True))) == "stock"


def test_the_picker_is_shown_local_requests_only() -> None:
    scheduler = Scheduler(Req("t", local=False, kv=True), Req("a"), Req("b"))
    step(scheduler)
    assert scheduler.offered == ["a", "b"]
    assert sorted(scheduler.queued) == ["a", "b", "t"]


def test_a_restored_local_request_is_not_prefilled_again() -> None:
    scheduler = Scheduler(Req("restored", kv=True), Req("a"))
    step(scheduler)
    assert scheduler.offered == ["a"]


def test_local_requests_wait_while_retracted_ones_do() -> None:
    scheduler = Scheduler(Req("a"))
    scheduler.disagg_decode_prealloc_queue.retracted_queue.append(Req("r"))
    step(scheduler)
    assert scheduler.offered == []
    assert scheduler.queued == ["a"]


def test_an_open_chunk_and_an_unmerged_prefill_keep_the_step_local() -> None:
    chunked, prefilled = Scheduler(), Scheduler()
    chunked.chunked_req = Req("c", kv=True)
    prefilled.last_batch = Batch([Req("p", kv=True)], extend=True)
    assert step(chunked) != "stock"
    assert step(prefilled) != "stock"


def test_transferred_requests_are_admitted_while_a_chunk_is_open() -> None:
    scheduler = Scheduler()
    scheduler.chunked_req = Req("c", kv=True)
    scheduler.prebuilt = Batch([Req("t", local=False, kv=True)])
    running = Batch([Req("r", kv=True)])
    assert [req.rid for req in step(scheduler, running).reqs] == ["r", "t"]


def test_an_empty_running_batch_is_never_full() -> None:
    running = Batch(batch_is_full=True)
    step(Scheduler(Req("a")), running)
    assert not running.batch_is_full


def taken(scheduler: Scheduler, running: Batch) -> list[str]:
    """What the stock function was shown; it takes everything."""
    shown: list[str] = []

    def stock(scheduler: Any, running_batch: Batch) -> None:
        shown.extend(scheduler.queued)
        scheduler.waiting_queue = []

    batching.get_prebuilt_batch(inside()[0], stock, scheduler, running)
    return shown


def test_only_requests_with_kv_count_as_transferred() -> None:
    scheduler = Scheduler(Req("a"), Req("t", local=False, kv=True), Req("restored", kv=True))
    assert taken(scheduler, Batch()) == ["t", "restored"]
    assert scheduler.queued == ["a"]


def test_transferred_requests_leave_rows_to_the_batch_in_prefill() -> None:
    transferred = [Req(f"t{i}", local=False, kv=True) for i in range(4)]
    scheduler = Scheduler(*transferred)
    scheduler.chunked_req = Req("c", kv=True)
    scheduler.last_batch = Batch([Req("p", kv=True), scheduler.chunked_req], extend=True)
    assert taken(scheduler, Batch([Req("r", kv=True)])) == ["t0"]
    assert scheduler.queued == ["t1", "t2", "t3"]


def test_rows_are_never_negative() -> None:
    assert batching.rows_left(max_rows=2, running=2, prefilling=1) == 0


def test_a_request_that_lost_its_prefix_in_the_queue_is_refused() -> None:
    context, adapter = inside()
    lost, kept = Req("lost", resident=10), Req("kept")
    scheduler = Scheduler(lost, kept)
    answers = [
        batching.add_one_req(context, lambda adder, req: "added", None, req) for req in (lost, kept)
    ]
    batching.get_next_batch(context, stock_next, scheduler, Batch())
    assert answers == ["continue", "added"]
    assert scheduler.queued == ["kept"]
    assert [rid for rid, _, _ in adapter.refused] == ["lost"]


def test_an_abort_ends_queued_local_requests_as_a_plain_server_does() -> None:
    scheduler = Scheduler(Req("a1"), Req("b"), Req("a2", local=False, kv=True))
    calls: list[tuple[Mode, list[str]]] = []

    def stock(scheduler: Any, recv_req: AbortReq) -> None:
        calls.append((scheduler.disaggregation_mode, scheduler.queued))
        kept = [r for r in scheduler.waiting_queue if not r.rid.startswith(recv_req.rid)]
        scheduler.waiting_queue = kept

    abort.abort_request(inside()[0], stock, scheduler, AbortReq("a"))
    assert calls == [(Mode.NULL, ["a1"]), (Mode.DECODE, ["b", "a2"])]
    assert scheduler.queued == ["b"]


def test_an_abort_of_everything_means_everyone() -> None:
    assert abort.is_meant(AbortReq("", abort_all=True), "x")
    assert not abort.is_meant(AbortReq("y"), "x")
