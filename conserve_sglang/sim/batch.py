"""The turns a worker decodes together."""

import math
from heapq import heappop, heappush

from conserve_sglang.sim.decode_log import DecodeLog, StepRun
from conserve_sglang.sim.perf_model import PowerModel, run_length
from conserve_sglang.sim.turn_run import TurnRun

FORGET_EVERY = 32


class DecodeBatch:
    """Turns by the step after which each needs attention: it is answered, or its room is full.

    A step's joules (`decode_j` in all) are affine in requests and KV tokens: what does not depend
    on KV tokens is shared equally by the requests, the rest by the KV tokens each holds. Sums over
    the steps so far are kept (joules per request, per KV token, and the latter times the step's
    number), so that a turn's share is a difference of sums, whatever batches lay between.
    """

    __slots__ = (
        "_heap",
        "_last_end_s",
        "_log",
        "_num_joined",
        "_numbered_j",
        "_request_j",
        "_token_j",
        "decode_j",
        "kv_tokens",
        "num_steps",
    )

    def __init__(self) -> None:
        self.num_steps = 0
        self.kv_tokens = 0
        self.decode_j = 0.0
        self._request_j = self._token_j = self._numbered_j = 0.0
        self._heap: list[tuple[int, int, TurnRun]] = []
        self._num_joined = 0
        self._log = DecodeLog()
        self._last_end_s = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def steps_to_next(self) -> int:
        """Steps until the next turn needs attention; the batch must not be empty."""
        return self._heap[0][0] - self.num_steps

    def join(self, run: TurnRun) -> None:
        """Decode a turn, from its next token on, until it is answered or its room is full."""
        run.joined_at_step = self.num_steps
        run.request_j, run.token_j = self._request_j, self._token_j
        run.numbered_j = self._numbered_j
        room = run.held_tokens - run.input_tokens - run.generated_tokens
        left = run.output_tokens - run.generated_tokens
        self._num_joined += 1
        self.kv_tokens += run.input_tokens + run.generated_tokens
        heappush(self._heap, (self.num_steps + min(room, left), self._num_joined, run))

    def advance(self, steps: StepRun, now: float, power: PowerModel | None) -> None:
        """The steps of a run have been decoded."""
        self._log.add(steps)
        if power is not None:
            self._book(power, steps)
        self._last_end_s = now
        self.num_steps += steps.num_steps
        self.kv_tokens += steps.num_steps * len(self._heap)

    def _book(self, power: PowerModel, steps: StepRun) -> None:
        """Count the joules of steps that begin with the present batch."""
        num_steps = steps.num_steps
        requests, token_j = len(self._heap), power.decode_j_per_kv_token
        whole_j = power.decode_step_j + power.decode_j_per_request * requests
        half = (num_steps - 1) / 2
        share = self._share(power, steps)
        self._request_j += share * num_steps * whole_j / requests
        self._token_j += share * num_steps * token_j
        self._numbered_j += share * token_j * num_steps * (self.num_steps + half)
        self.decode_j += self.joules_of(power, steps)

    def joules_of(self, power: PowerModel, steps: StepRun) -> float:
        """Joules of steps that begin with the present batch."""
        return self._share(power, steps) * self._unbounded_j(power, steps.num_steps)

    def _share(self, power: PowerModel, steps: StepRun) -> float:
        """How much of what the closed form says may be drawn."""
        if power.most_w == math.inf:
            return 1.0
        unbounded_j = self._unbounded_j(power, steps.num_steps)
        seconds = run_length(steps.num_steps, steps.step_s, steps.growth_s)
        return min(1.0, power.most_w * seconds / unbounded_j) if unbounded_j > 0 else 1.0

    def _unbounded_j(self, power: PowerModel, num_steps: int) -> float:
        requests, half = len(self._heap), (num_steps - 1) / 2
        whole_j = power.decode_step_j + power.decode_j_per_request * requests
        token_j = power.decode_j_per_kv_token
        return num_steps * (whole_j + token_j * (self.kv_tokens + requests * half))

    def step_run(self, num_steps: int, start_s: float, step_s: float, growth_s: float) -> StepRun:
        """A run of steps that follows those decoded so far."""
        return StepRun(self.num_steps, num_steps, self._last_end_s, start_s, step_s, growth_s)

    def pop_due(self, now: float) -> TurnRun | None:
        """Take out a turn that needs attention now; None when none does."""
        heap = self._heap
        if not heap or heap[0][0] > self.num_steps:
            return None
        run = heappop(heap)[2]
        self._leave(run, now)
        return run

    def pop_all(self) -> list[TurnRun]:
        """Take out all turns, as the steps so far left them: their worker is lost."""
        runs = [run for _, _, run in self._heap]
        for run in runs:
            if run.joined_at_step < self.num_steps:
                self._leave(run, self._last_end_s)
        self._heap.clear()
        self.kv_tokens = 0
        return runs

    def _leave(self, run: TurnRun, now: float) -> None:
        if run.wants_gaps:
            run.gaps += self._log.gaps(run.joined_at_step, run.token_at_s, self.num_steps)
        context = run.input_tokens + run.generated_tokens - run.joined_at_step
        run.decode_j += (
            self._request_j
            - run.request_j
            + context * (self._token_j - run.token_j)
            + (self._numbered_j - run.numbered_j)
        )
        run.generated_tokens += self.num_steps - run.joined_at_step
        run.token_at_s = now
        self.kv_tokens -= run.input_tokens + run.generated_tokens

    def forget(self) -> None:
        """Now and then, let go of the log of steps that no running turn has seen."""
        if self._log.num_runs % FORGET_EVERY == 0:
            joined = (run.joined_at_step for _, _, run in self._heap)
            self._log.forget_before(min(joined, default=self.num_steps))
