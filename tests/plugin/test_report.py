import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from conserve_sglang.plugin import report, transfers
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.settings import read_settings
from tests.plugin.stub import Req, StubAdapter, inside


def inquirer(*queue: Req, chunked: Req | None = None) -> Any:
    return SimpleNamespace(get_waiting_queue=lambda: list(queue), get_chunked_req=lambda: chunked)


def test_queued_local_turns_and_the_open_chunk_count_as_uncached_tokens() -> None:
    asked = inquirer(Req("a"), Req("t", local=False, kv=True), chunked=Req("c", resident=90))
    assert report.get_num_waiting_uncached_tokens(inside()[0], 0, asked) == 40 + 10


def test_queued_local_turns_count_as_tokens_to_come() -> None:
    load = SimpleNamespace(num_total_tokens=5, num_active_tokens=2)
    report.get_loads(inside()[0], load, inquirer(Req("a"), Req("t", local=False, kv=True)))
    assert (load.num_total_tokens, load.num_active_tokens) == (105, 102)


def test_a_decoder_says_what_it_can_do_and_what_it_holds() -> None:
    scheduler = SimpleNamespace(
        max_total_num_tokens=1000,
        token_to_kv_pool_allocator=SimpleNamespace(available_size=lambda: 400),
        page_size=1,
        chunked_prefill_size=256,
        max_running_requests=8,
    )
    state = SimpleNamespace(internal_state={})
    report.get_internal_state(inside()[0], state, scheduler, None)
    assert state.internal_state["conserve"]["local_prefill"] is True
    assert state.internal_state["conserve"]["resident_tokens"] == 600
    assert len(state.internal_state["conserve"]["incarnation"]) == 32


def test_sends_are_logged_with_what_they_moved(tmp_path: Path) -> None:
    log = tmp_path / "transfers"
    told = {"CONSERVE_COUNT_TRANSFERS": "1", "CONSERVE_TRANSFER_LOG": str(log)}
    context = Inside(sglang_version="0", adapter=StubAdapter(), settings=read_settings(told))

    def send(scheduler: Any, req: Any, last_chunk: bool = False) -> None:
        req.start_send_idx += 100

    for host in ("10.0.0.1", transfers.PRETENDED_HOST):
        req = SimpleNamespace(start_send_idx=0, rid="r", bootstrap_room=9, bootstrap_host=host)
        transfers.send_kv_chunk(context, send, None, req, last_chunk=True)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == [{"room": 9, "rid": "r", "tokens": 100, "last": True}]
