"""A stub of the scheduler and its requests: just what the hook bodies touch."""

from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.plugin.adapter import Adapter
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.settings import read_settings

MARK = LocalLimits(max_uncached=100, min_cached=50).to_routing_key()


class Mode(Enum):
    NULL = auto()
    DECODE = auto()


class Req:
    """A request; `resident` is what a match against the tree would find."""

    def __init__(
        self, rid: str, *, local: bool = True, kv: bool = False, resident: int = 60
    ) -> None:
        self.rid = rid
        self.routing_key = MARK if local else None
        self.bootstrap_room = None if local else 7
        self.session_params = None
        self.kv_held = kv
        self.resident = resident
        self.origin_input_ids = [1] * 100
        self.output_ids: list[int] = []
        self.to_finish: object | None = None
        self.has_backup = False

    @property
    def seqlen(self) -> int:
        return len(self.origin_input_ids) + len(self.output_ids)

    def finished(self) -> bool:
        return False


class StubAdapter(Adapter):
    prebuilt_method = "get_new_prebuilt_batch"

    def __init__(self) -> None:
        self.refused: list[tuple[str, str, HTTPStatus]] = []

    def holds_kv(self, req: Any) -> bool:
        return bool(req.kv_held)

    def prefix_tokens(self, req: Any) -> int:
        return int(req.resident)

    def matched_tokens(self, req: Any) -> int:
        return int(req.resident)

    def cached_tokens(self, scheduler: Any, req: Any) -> int:
        return int(req.resident)

    def drop_kv_backup(self, scheduler: Any, req: Any) -> None:
        req.has_backup = False

    def is_first_rank(self, scheduler: Any) -> bool:
        return True

    def release_queued(self, scheduler: Any, req: Any) -> None: ...

    def passed_over(self) -> Any:
        return "continue"

    def end_refused(self, scheduler: Any, req: Any, message: str, status: HTTPStatus) -> None:
        self.refused.append((req.rid, message, status))


@dataclass
class ForwardMode:
    extend: bool

    def is_extend(self) -> bool:
        return self.extend


@dataclass
class Batch:
    reqs: list[Req] = field(default_factory=list)
    extend: bool = False
    batch_is_full: bool = False

    @property
    def forward_mode(self) -> ForwardMode:
        return ForwardMode(self.extend)

    def is_empty(self) -> bool:
        return not self.reqs

    def batch_size(self) -> int:
        return len(self.reqs)

    def filter_batch(self) -> None: ...

    def merge_batch(self, other: "Batch") -> None:
        self.reqs += other.reqs


@dataclass
class Rows:
    size: int = 8


@dataclass
class Prealloc:
    retracted_queue: list[Req] = field(default_factory=list)


class Processor:
    def process_batch_result_prebuilt(self, batch: Batch) -> None: ...


@dataclass
class AbortReq:
    rid: str
    abort_all: bool = False


class Scheduler:
    def __init__(self, *queue: Req) -> None:
        self.waiting_queue = list(queue)
        self.disaggregation_mode = Mode.DECODE
        self.chunked_req: Req | None = None
        self._pending_chunked_abort_req = None
        self.last_batch: Batch | None = None
        self.req_to_token_pool = Rows()
        self.max_running_requests = 4
        self.disagg_decode_prealloc_queue = Prealloc()
        self.batch_result_processor = Processor()
        self.prebuilt: Batch | None = None
        self.offered: list[str] = []

    def get_new_prebuilt_batch(self, running_batch: Batch) -> Batch | None:
        return self.prebuilt

    def get_next_batch_to_run(self, *, running_batch: Batch, last_batch: Batch | None) -> Batch:
        self.offered = self.queued
        return running_batch

    @property
    def queued(self) -> list[str]:
        return [req.rid for req in self.waiting_queue]


def inside() -> tuple[Inside, StubAdapter]:
    adapter = StubAdapter()
    return Inside(
        sglang_version="0", adapter=adapter, settings=read_settings({"CONSERVE_LOCAL_PREFILL": "1"})
    ), adapter
