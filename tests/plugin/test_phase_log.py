"""The phase log's hooks over stub batches and a clock that the test turns."""

import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.phase_log import Batch, Launched, Opened, Phase, decode_line
from conserve_sglang.core.turn_tag import tagged
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.phase_log import PhaseHooks, PhaseLog
from conserve_sglang.plugin.settings import read_settings
from tests.plugin.stub import StubAdapter

MEGABYTE = 1024 * 1024


@dataclass
class Mode:
    name: str

    def is_decode(self) -> bool:
        return self.name == "decode"

    def is_extend(self) -> bool:
        return self.name in ("extend", "verify")

    def is_target_verify(self) -> bool:
        return self.name == "verify"


class Req:
    def __init__(self, routing_key: str | None, num_prompt: int = 100) -> None:
        self.routing_key = routing_key
        self.origin_input_ids = [1] * num_prompt
        self.output_ids: list[int] = []
        self.is_over = False

    def finished(self) -> bool:
        return self.is_over


@dataclass
class StubBatch:
    reqs: list[Req]
    forward_mode: Mode
    launch_ts: float = 0.0
    extend_lens: list[int] = field(default_factory=list)
    prefix_lens: list[int] = field(default_factory=list)


class Site:
    """A log with its clock, and batches run through it as the scheduler would."""

    def __init__(self, path: Path, mode: str = "decode", max_bytes: int = MEGABYTE) -> None:
        self.path = path
        self.now_s = 100.0
        self.log = PhaseLog(path, max_bytes, mode, lambda: self.now_s)

    def run(self, batch: StubBatch, seconds: float, gap_s: float = 0.0) -> None:
        self.now_s += gap_s
        batch.launch_ts = self.now_s
        self.log.launched(batch)
        self.now_s += seconds
        self.finish(batch)

    def finish(self, batch: StubBatch) -> None:
        self.log.ending(batch)
        if batch.forward_mode.is_decode():
            for req in batch.reqs:
                req.output_ids.append(1)
        self.log.ended(batch)

    def entries(self, path: Path | None = None) -> list[Any]:
        return [decode_line(line) for line in (path or self.path).read_bytes().splitlines()]

    def batches(self) -> list[Batch]:
        return [entry for entry in self.entries() if isinstance(entry, Batch)]


def extend(*reqs: Req, new: int = 40, held: int = 60) -> StubBatch:
    return StubBatch(list(reqs), Mode("extend"), 0.0, [new] * len(reqs), [held] * len(reqs))


def decode(*reqs: Req) -> StubBatch:
    return StubBatch(list(reqs), Mode("decode"))


def test_append_is_logged_with_its_turn_tokens_and_times(tmp_path: Path) -> None:
    site = Site(tmp_path / "d0.phases")
    site.run(extend(Req(tagged(None, "conv-a", 2))), 0.5)
    opened, launched, batch = site.entries()
    assert opened == Opened(os.getpid(), 100.0, 1)
    assert launched == Launched(100.0)
    ((conversation, turn, phase, new, held),) = [
        (w.conversation, w.turn, w.phase, w.new_tokens, w.held_tokens) for w in batch.works
    ]
    assert (batch.start_s, batch.end_s) == (100.0, 100.5)
    assert (conversation, turn, phase, new, held) == ("conv-a", 2, Phase.APPEND_PREFILL, 40, 60)


@pytest.mark.parametrize(
    ("mode", "turn", "phase"),
    [
        ("prefill", 1, Phase.PREFILL),
        ("prefill", 4, Phase.PREFILL),  # a new phase 1 is no append, wherever its KV goes
        ("decode", 1, Phase.PREFILL),
        ("decode", 4, Phase.APPEND_PREFILL),
        ("null", 1, Phase.PREFILL),
        ("null", 4, Phase.APPEND_PREFILL),
    ],
)
def test_phase_is_told_by_server_and_turn(
    tmp_path: Path, mode: str, turn: int, phase: Phase
) -> None:
    site = Site(tmp_path / "w.phases", mode)
    site.run(extend(Req(tagged(None, "c", turn))), 0.5)
    assert site.batches()[0].works[0].phase is phase


def test_steps_one_after_the_other_are_one_line_with_each_requests_tokens(tmp_path: Path) -> None:
    site = Site(tmp_path / "d0.phases")
    first, second = Req(tagged(None, "a", 1)), Req(tagged(None, "b", 1), num_prompt=10)
    for _ in range(4):
        site.run(decode(first), 0.01)
    for _ in range(6):
        site.run(decode(first, second), 0.01)
    first.is_over = second.is_over = True
    site.run(decode(first, second), 0.01)
    (run,) = site.batches()
    assert (run.steps, run.start_s) == (11, 100.0)
    assert run.end_s == pytest.approx(100.11)
    tokens = {w.conversation: (w.new_tokens, w.held_tokens) for w in run.works}
    assert tokens == {"a": (11, 105), "b": (7, 13)}


def test_run_ends_after_a_quarter_second_at_a_gap_and_at_an_append(tmp_path: Path) -> None:
    site = Site(tmp_path / "d0.phases")
    req = Req(None)
    for _ in range(20):
        site.run(decode(req), 0.03)
    site.run(decode(req), 0.03, gap_s=0.5)
    site.run(extend(Req(None)), 0.2)
    assert [batch.steps for batch in site.batches()] == [9, 9, 2, 1, 1]
    assert site.batches()[3].start_s == pytest.approx(101.1)


def test_batches_the_host_overlapped_do_not_overlap_in_the_log(tmp_path: Path) -> None:
    site = Site(tmp_path / "d0.phases")
    first, second = extend(Req(None)), extend(Req(None))
    first.launch_ts, second.launch_ts = 100.0, 100.1
    site.now_s = 100.4
    site.finish(first)
    site.now_s = 100.9
    site.finish(second)
    assert [(b.start_s, b.end_s) for b in site.batches()] == [(100.0, 100.4), (100.4, 100.9)]


def test_batch_of_transferred_kv_computes_nothing_and_is_not_logged(tmp_path: Path) -> None:
    site = Site(tmp_path / "d0.phases")
    site.run(StubBatch([Req(None)], Mode("prebuilt")), 0.1)
    assert len(site.entries()) == 1


def test_full_file_makes_room_for_another_and_two_are_the_most(tmp_path: Path) -> None:
    site = Site(tmp_path / "d0.phases", max_bytes=1000)
    for _ in range(100):
        site.run(extend(Req(tagged(None, "conv-a", 2))), 0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d0.phases", "d0.phases.1"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    before, now = (site.entries(path)[0] for path in (tmp_path / "d0.phases.1", site.path))
    assert now.number == before.number + 1 > 2


def test_log_of_the_servers_life_before_is_kept_aside(tmp_path: Path) -> None:
    Site(tmp_path / "d0.phases").run(extend(Req(None)), 0.5)
    again = Site(tmp_path / "d0.phases")
    assert len(again.entries()) == 1
    assert len(again.entries(tmp_path / "d0.phases.1")) == 3


def test_disk_that_fails_ends_the_log_and_not_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    site = Site(tmp_path / "file" / "d0.phases")
    site.run(extend(Req(None)), 0.5)
    assert "ends here" in caplog.text


def test_no_prompt_is_in_it(tmp_path: Path) -> None:
    site = Site(tmp_path / "d0.phases")
    req = Req(tagged(None, "conv-a", 1))
    req.origin_input_ids = [424242] * 8
    site.run(extend(req), 0.5)
    site.run(decode(req), 0.5)
    assert b"424242" not in site.path.read_bytes()


class Disaggregation(Enum):
    DECODE = "decode"


class Scheduler:
    disaggregation_mode = Disaggregation.DECODE


class OtherRank(StubAdapter):
    def is_first_rank(self, scheduler: Any) -> bool:
        return False


@pytest.mark.parametrize(("adapter", "is_there"), [(StubAdapter(), True), (OtherRank(), False)])
def test_hooks_pass_results_on_and_one_rank_logs(
    tmp_path: Path, adapter: StubAdapter, is_there: bool
) -> None:
    path = tmp_path / "d0.phases"
    settings = read_settings({"CONSERVE_PHASE_LOG": str(path), "CONSERVE_PHASE_LOG_MB": "2"})
    hooks = PhaseHooks(Inside(sglang_version="0", adapter=adapter, settings=settings))
    batch = extend(Req(None))
    assert hooks.run_batch(lambda *_: "run", Scheduler(), batch) == "run"
    assert hooks.process_batch_result(lambda *_: "done", Scheduler(), batch, "run") == "done"
    assert path.exists() is is_there
    assert settings.phase_log_bytes == 2 * MEGABYTE
