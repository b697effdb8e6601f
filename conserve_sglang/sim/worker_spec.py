"""What a simulated worker is, and what it tells of its work."""

from dataclasses import dataclass
from typing import Protocol

from conserve_sglang.core.local_turn import Refusal
from conserve_sglang.core.worker import WorkerSpec
from conserve_sglang.sim.perf_model import PerfModel
from conserve_sglang.sim.turn_run import TurnRun


@dataclass(frozen=True, slots=True, kw_only=True)
class SimWorkerSpec:
    """A worker to simulate.

    `kv_pool_tokens` is the pool it really has; None: what its `spec` says. `chunk_tokens` bounds a
    prefill step, `max_running` the batch. A turn holds room for its prompt and for
    `output_lump_tokens` of its answer, and takes another lump when these are used up; without
    room for one it is retracted to host memory, and comes back in the time a KV transfer takes.
    `prefill_decode_interval`: decode steps between two prefill steps while the batch is not empty,
    as SGLang's argument of that name; 0: prefill goes first. `keeps_prompts`: a prefiller keeps
    what it has prefilled as a cache.
    """

    spec: WorkerSpec
    perf: PerfModel
    chunk_tokens: int = 2944
    max_running: int = 256
    output_lump_tokens: int = 512
    kv_pool_tokens: int | None = None
    prefill_decode_interval: int = 0
    keeps_prompts: bool = True


class Reports(Protocol):
    """What a worker tells the one who drives it."""

    def refused(self, run: TurnRun, refusal: Refusal, now: float) -> None:
        """A decoder will not prefill a local turn."""

    def prefilled(self, run: TurnRun, now: float) -> None:
        """A prefiller has a prompt's KV whole."""

    def has_room(self, run: TurnRun, now: float) -> None:
        """A decoder holds room for a turn that is prefilled elsewhere."""

    def first_token(self, run: TurnRun, now: float) -> None:
        """A turn's first token is out."""

    def done(self, run: TurnRun, now: float) -> None:
        """A turn's last token is out."""
