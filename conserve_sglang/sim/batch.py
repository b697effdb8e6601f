"""The turns a worker decodes together."""

import math
from heapq import heappop, heappush

from conserve_sglang.sim.decode_log import DecodeLog, StepRun
from conserve_sglang.sim.perf_model import PerfModel, PowerModel, run_length
from conserve_sglang.sim.reach import Reach
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
        "num_running",
        "num_steps",
        "reach",
    )

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self.num_running = 0
        self.num_steps = 0
        self.kv_tokens = 0
        self.decode_j = 0.0
        self._request_j = self._token_j = self._numbered_j = 0.0
        self._heap: list[tuple[int, int, TurnRun]] = []
        self._num_joined = 0
        self._log = DecodeLog()
        self._last_end_s = 0.0

    def join(self, run: TurnRun) -> None:
        """Decode a turn, from its next token on, until it is answered or its room is full."""
        run.joined_at_step = self.num_steps
        run.request_j, run.token_j = self._request_j, self._token_j
        run.numbered_j = self._numbered_j
        context = run.input_tokens + run.generated_tokens
        room, left = run.held_tokens - context, run.output_tokens - run.generated_tokens
        self._num_joined += 1
        self.num_running += 1
        self.kv_tokens += context
        due_at_step = self.num_steps + (room if room < left else left)
        heappush(self._heap, (due_at_step, self._num_joined, run))

    def advance(self, steps: StepRun, now: float, power: PowerModel | None) -> None:
        """The steps of a run have been decoded."""
        log = self._log
        if log.num_runs % FORGET_EVERY == 0:
            log.forget_before(min(run.joined_at_step for _, _, run in self._heap))
        log.add(steps)
        self.reach.decoded(self.num_running, self.kv_tokens, steps.num_steps)
        if power is not None:
            self._book(power, steps)
        self._last_end_s = now
        self.num_steps += steps.num_steps
        self.kv_tokens += steps.num_steps * self.num_running

    def _book(self, power: PowerModel, steps: StepRun) -> None:
        """Count the joules of steps that begin with the present batch."""
        num_steps, requests = steps.num_steps, self.num_running
        whole_j = power.decode_step_j + power.decode_j_per_request * requests
        token_j = power.decode_j_per_kv_token
        half = (num_steps - 1) / 2
        joules = num_steps * (whole_j + token_j * (self.kv_tokens + requests * half))
        share = 1.0 if power.most_w == math.inf else _share(power, steps, joules)
        self._request_j += share * num_steps * whole_j / requests
        self._token_j += share * num_steps * token_j
        self._numbered_j += share * token_j * num_steps * (self.num_steps + half)
        self.decode_j += share * joules

    def joules_of(self, power: PowerModel, steps: StepRun) -> float:
        """Joules of steps that begin with the present batch."""
        num_steps, requests = steps.num_steps, self.num_running
        whole_j = power.decode_step_j + power.decode_j_per_request * requests
        kv_tokens = self.kv_tokens + requests * ((num_steps - 1) / 2)
        joules = num_steps * (whole_j + power.decode_j_per_kv_token * kv_tokens)
        return _share(power, steps, joules) * joules

    def begin(self, perf: PerfModel, now: float) -> StepRun:
        """The steps from now on until the next turn needs attention; there must be one."""
        first_step, num_running = self.num_steps, self.num_running
        num_steps = self._heap[0][0] - first_step
        step_s = perf.decode_step(num_running, self.kv_tokens)
        growth_s = perf.decode_s_per_kv_token * num_running
        return StepRun(first_step, num_steps, self._last_end_s, now, step_s, growth_s)

    def pop_due(self, now: float) -> list[TurnRun]:
        """Take out the turns that need attention now, in the order in which they joined."""
        heap, num_steps = self._heap, self.num_steps
        due = []
        while heap and heap[0][0] <= num_steps:
            run = heappop(heap)[2]
            self._leave(run, now)
            due.append(run)
        self.num_running -= len(due)
        return due

    def pop_all(self) -> list[TurnRun]:
        """Take out all turns, as the steps so far left them: their worker is lost."""
        runs = [run for _, _, run in self._heap]
        for run in runs:
            if run.joined_at_step < self.num_steps:
                self._leave(run, self._last_end_s)
        self._heap.clear()
        self.num_running = self.kv_tokens = 0
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


def _share(power: PowerModel, steps: StepRun, joules: float) -> float:
    """How much of the joules that the closed form says may be drawn."""
    seconds = run_length(steps.num_steps, steps.step_s, steps.growth_s)
    return min(1.0, power.most_w * seconds / joules) if joules > 0 else 1.0
