"""An SGLang-like worker in virtual time.

It does one step after another, and at each step's end decides the next one, as SGLang's scheduler
does without mixed chunks: turns whose KV has arrived join the batch; then prefill goes first, in
chunks; else the batch decodes. A decode run of many steps is one action, and is cut at the next
step's end when work comes in.

                       ┌── prefill step: chunk of the open prompt, then waiting prompts
    idle ── work ──> plan ── decode run: until the first turn of the batch is done
                       ^         │
                       └─────────┘
"""

from collections import deque
from functools import partial

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.core.worker import Role
from conserve_sglang.sim.batch import DecodeBatch
from conserve_sglang.sim.decode_log import StepRun
from conserve_sglang.sim.kernel import Kernel
from conserve_sglang.sim.kv_pool import KvPool
from conserve_sglang.sim.perf_model import run_length, steps_until
from conserve_sglang.sim.power import WorkerEnergy, worker_energy
from conserve_sglang.sim.prefill_batch import PrefillBatch
from conserve_sglang.sim.reach import Reach
from conserve_sglang.sim.turn_run import TurnRun
from conserve_sglang.sim.worker_spec import Reports, SimWorkerSpec


class SimWorker:
    """One worker: its queues, its batch, its KV pool, and the one action it is busy with."""

    def __init__(self, worker: SimWorkerSpec, kernel: Kernel, reports: Reports) -> None:
        self.spec, self.perf = worker.spec, worker.perf
        self.pool = KvPool(worker.kv_pool_tokens or worker.spec.kv_capacity_tokens)
        self.num_retracted, self.busy_s = 0, 0.0
        self.joins_chunks = True  # full chunks of a long prompt as one action
        self._power = worker.perf.power  # of the action in progress
        self._kernel, self._reports = kernel, reports
        self._chunk_tokens, self._max_running = worker.chunk_tokens, worker.max_running
        self._output_lump_tokens = worker.output_lump_tokens
        self._is_prefiller = worker.spec.role is Role.PREFILL
        self._keeps_prompts = worker.keeps_prompts
        self._interval, self._decode_due = worker.prefill_decode_interval, 0
        self._waiting: deque[TurnRun] = deque()
        self._wants_room: deque[TurnRun] = deque()
        self._arrived: deque[TurnRun] = deque()
        self._open: TurnRun | None = None  # prefilled in part
        self.reach = Reach(worker.perf, str(worker.spec.tier))
        self._prefill = PrefillBatch()
        self._batch = DecodeBatch(self.reach)
        self._steps = StepRun(0, 0, 0.0, 0.0, 0.0, 0.0)  # in decode now
        self._action_start_s = 0.0
        self._wake_at_s: float | None = None
        self._is_planning = self.is_lost = False

    # what comes in

    def fits(self, tokens: int) -> bool:
        """Whether so much KV could ever be held here."""
        return tokens <= self.pool.capacity

    def prefill(self, run: TurnRun, now: float) -> None:
        """Queue a turn whose prompt is prefilled here; a local one may be refused at once."""
        if self.is_lost:
            return
        refusal = run.refusal(self.pool.resident(run.conversation_id))
        if refusal is not None:
            self._reports.refused(run, refusal, now)
            return
        self._waiting.append(run)
        self._look_up(now)

    def reserve(self, run: TurnRun, now: float) -> None:
        """Hold room for a turn that is prefilled elsewhere, as soon as there is any."""
        if self.is_lost:
            return
        self._wants_room.append(run)
        self._give_room(now)

    def receive(self, run: TurnRun, now: float) -> None:
        """A turn's KV has arrived."""
        if self.is_lost or run.heir is not None:
            return
        self._arrived.append(run)
        self._look_up(now)

    def sent(self, run: TurnRun, now: float) -> None:
        """A turn's KV has left this prefiller, which keeps it as a cache."""
        keep = run.input_tokens if self._keeps_prompts else 0
        self.pool.give_back(run.conversation_id, run.input_tokens, keep)
        if self._wants_room:
            self._give_room(now)
        if self._waiting:
            self._look_up(now)

    def hold_copy(self, conversation_id: ConversationId, tokens: int) -> None:
        """A conversation's KV came from its decoder: kept as a cache, if there is room."""
        if not self.is_lost and self.pool.take(conversation_id, tokens):
            self.pool.give_back(conversation_id, tokens, tokens)

    def release(self, conversation_id: ConversationId) -> None:
        """Let go of an idle conversation's KV."""
        self.pool.drop(conversation_id)

    # loss

    def lose(self, now: float) -> None:
        """Stop where it is: what is in its batch has the tokens of the steps that ended, and the
        rest is void. A decode step that was cut is booked as idle."""
        if self._prefill.parts:
            self._take_out_prefilled(now)
        elif self._wake_at_s is not None:
            ended, seconds = self._steps.ended_by(now)
            if ended.num_steps > 0:
                self.busy_s += seconds
                self._batch.advance(ended, ended.start_s + seconds, self._power)
        self._batch.pop_all()
        for queue in (self._waiting, self._wants_room, self._arrived):
            queue.clear()
        self._open, self._wake_at_s = None, None
        self.pool = KvPool(self.pool.capacity)
        self.is_lost = True

    def come_back(self) -> None:
        """It is there again, and empty."""
        self.is_lost = False

    def drop_prefill(self, run: TurnRun, now: float) -> None:
        """The decoder of a turn that is prefilled here is lost. A step it is part of is ended."""
        if self.is_lost:
            return
        if run in self._waiting:
            self._waiting.remove(run)
        elif self._open is run:
            self._open = None
            self.pool.give_back(run.conversation_id, run.input_tokens, 0)
        elif run.is_prefilled:
            self.sent(run, now)
        if self._wants_room:
            self._give_room(now)
        self._look_up(now)

    def drop_room(self, run: TurnRun, now: float) -> None:
        """The prefiller of a turn that has, or waits for, room here is lost."""
        if self.is_lost:
            return
        if run in self._wants_room:
            self._wants_room.remove(run)
        elif run.held_tokens:
            self.pool.give_back(run.conversation_id, run.held_tokens, run.cached_tokens)
        self._give_room(now)
        self._look_up(now)

    # steps

    def _look_up(self, now: float) -> None:
        """There is new work: begin, or cut the decode run short at the next step's end."""
        if self._is_planning:
            return
        if self._wake_at_s is None:
            self._plan(now)
        elif not self._prefill.parts:
            steps = self._steps
            elapsed = now - steps.start_s
            if elapsed <= 0:
                self._plan(now)
                return
            num_steps = steps_until(elapsed, steps.step_s, steps.growth_s)
            if num_steps < steps.num_steps:
                steps.num_steps = num_steps
                seconds = run_length(num_steps, steps.step_s, steps.growth_s)
                self._be_busy(steps.start_s, seconds)

    def _wake(self, now: float) -> None:
        if now != self._wake_at_s:
            return  # the action this was for has been cut short
        self._wake_at_s = None
        self._is_planning = True
        if self._prefill.parts:
            self._end_prefill(now)
        else:
            self._end_decode(now)
        self._plan(now)

    def _plan(self, now: float) -> None:
        self._is_planning = True
        self._wake_at_s = None
        batch, perf = self._batch, self.perf
        while self._arrived and batch.num_running < self._max_running:
            self._begin_answer(self._arrived.popleft(), now)
        is_due = False
        if self._waiting or self._open is not None:
            is_due = self._decode_due > 0 and batch.num_running > 0
            if not is_due:
                self._pick_prefill(now)
        self._power = perf.power
        if self._prefill.parts:
            self._be_busy(now, self._prefill.begin(perf))
        elif batch.num_running:
            steps = self._steps = batch.begin(perf, now)
            if is_due:
                steps.num_steps = min(steps.num_steps, self._decode_due)
            self._be_busy(now, run_length(steps.num_steps, steps.step_s, steps.growth_s))
        self._is_planning = False

    def _be_busy(self, start_s: float, seconds: float) -> None:
        kernel, until_s = self._kernel, start_s + seconds
        self._action_start_s = start_s
        self._wake_at_s = until_s if until_s > kernel.now else kernel.now
        kernel.at(self._wake_at_s, self._wake)

    # prefill

    def _pick_prefill(self, now: float) -> None:
        """Fill the next prefill step: first the open prompt, then waiting ones in order."""
        budget, waiting = self._chunk_tokens, self._waiting
        if self._open is not None:
            budget -= self._put_open(self._open, budget)
        most = self._max_running - self._batch.num_running
        while budget > 0 and waiting and len(self._prefill.parts) < most:
            run = waiting[0]
            resident = self.pool.resident(run.conversation_id)
            refusal = run.refusal(resident)
            if refusal is not None:  # its prefix was evicted while it waited
                waiting.popleft()
                self._reports.refused(run, refusal, now)
                continue
            if run.is_prefilled_apart:
                if not self.pool.take(run.conversation_id, run.input_tokens):
                    return
            elif not self._take(run):
                return
            waiting.popleft()
            run.prefill_after(resident, self.perf)
            self.reach.prefilled(run.prefill_from, run.input_tokens)
            run.prefill_at_s = now
            if not run.is_prefilled_apart:
                run.cached_tokens = run.prefill_from
            budget -= self._put(run, budget)

    def _put_open(self, run: TurnRun, budget: int) -> int:
        """Go on with the prompt that is prefilled in part."""
        self._open = None
        return self._put(run, budget)

    def _put(self, run: TurnRun, budget: int) -> int:
        """Have a prompt prefilled in the next step as far as `budget` goes; the tokens of that."""
        left = run.input_tokens - run.position
        if left <= budget:
            self._prefill.parts.append((run, run.input_tokens))
            return left
        tokens = budget
        is_alone = self._is_prefiller and self.joins_chunks and not self._batch.num_running
        if is_alone and run.is_prefilled_apart and budget == self._chunk_tokens:
            tokens = left - left % budget  # nothing can come between full chunks: one action
        self._prefill.parts.append((run, run.position + tokens))
        return budget

    def _end_prefill(self, now: float) -> None:
        self._decode_due = self._interval
        for run, until in self._take_out_prefilled(now):
            run.position = until
            if run.heir is not None:  # its decoder was lost meanwhile
                self.pool.give_back(run.conversation_id, run.input_tokens, 0)
            elif until < run.input_tokens:
                self._open = run
            elif run.is_prefilled_apart:
                self._reports.prefilled(run, now)
            else:
                self._begin_answer(run, now)

    def energy(self, window_s: float) -> WorkerEnergy:
        """What it has used by now, of a window that holds all of its work."""
        done = self._prefill, self._batch
        return worker_energy(self.spec, self.perf.power, *done, self.busy_s, window_s)

    def _take_out_prefilled(self, now: float) -> list[tuple[TurnRun, int]]:
        seconds = now - self._action_start_s
        self.busy_s += seconds
        return self._prefill.take_out(self._power, seconds)

    # decode

    def _begin_answer(self, run: TurnRun, now: float) -> None:
        """The first token is out, or a retracted turn is back; more come with decode steps."""
        if run.generated_tokens == 0:
            run.begin_answer(now)
            self._reports.first_token(run, now)
        self._go_on(run, now)

    def _go_on(self, run: TurnRun, now: float) -> None:
        """Let a turn decode on, in more room if it needs some, or retract it for want of that."""
        if run.generated_tokens == run.output_tokens:
            self._finish(run, now)
            return
        if run.held_tokens > run.input_tokens + run.generated_tokens:
            self._batch.join(run)
            return
        more = run.room_for_more(self._output_lump_tokens) - run.held_tokens
        if self.pool.extend(more):
            run.held_tokens += more
            self._batch.join(run)
            return
        self.num_retracted += 1
        self.pool.give_back(run.conversation_id, run.held_tokens, 0)
        self._wants_room.appendleft(run)

    def _end_decode(self, now: float) -> None:
        self.busy_s += now - self._action_start_s
        self._batch.advance(self._steps, now, self._power)
        if self._decode_due:
            self._decode_due = max(0, self._decode_due - self._steps.num_steps)
        for run in self._batch.pop_due(now):
            self._go_on(run, now)

    def _finish(self, run: TurnRun, now: float) -> None:
        keep = run.whole_tokens if run.command.keeps_kv else 0
        self.pool.give_back(run.conversation_id, run.held_tokens, keep)
        if self._wants_room:
            self._give_room(now)
        self._reports.done(run, now)

    def _give_room(self, now: float) -> None:
        """Hold room for turns prefilled elsewhere or retracted, in order."""
        waiting = self._wants_room
        while waiting:
            run = waiting[0]
            resident = self.pool.resident(run.conversation_id)
            if not self._take(run):
                return
            waiting.popleft()
            if run.generated_tokens == 0:
                run.cached_tokens = min(run.shared_tokens, resident)
                self._reports.has_room(run, now)
            else:
                context = run.input_tokens + run.generated_tokens
                back_at_s = now + self.perf.transfer_s(context)
                self._kernel.at(back_at_s, partial(self.receive, run))

    def _take(self, run: TurnRun) -> bool:
        tokens = run.room_for_more(self._output_lump_tokens)
        if not self.pool.take(run.conversation_id, tokens):
            return False
        run.held_tokens = tokens
        return True
