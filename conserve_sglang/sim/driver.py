"""The second executor: carries the dispatcher's commands out on simulated workers.

It is the router's counterpart. The same events go in and the same commands come out; what differs
is that a worker's answer is computed. One clock: a turn's times include every wait.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from conserve_sglang.core.ids import ConversationId, TurnId
from conserve_sglang.core.local_turn import Refusal, RefusalReason
from conserve_sglang.dispatch import (
    Command,
    ConversationEnded,
    Dispatcher,
    Event,
    FailureCause,
    FirstToken,
    RejectTurn,
    ReleaseConversation,
    SendTurn,
    Tick,
    TurnAbandoned,
    TurnArrived,
    TurnDone,
    TurnFailed,
    TurnInterrupted,
    WorkerLost,
    WorkerUp,
)
from conserve_sglang.sim.bootstrap import Bootstrap
from conserve_sglang.sim.changing import ChangingWorker
from conserve_sglang.sim.deployment import Deployment, WorkerLoss
from conserve_sglang.sim.kernel import Kernel
from conserve_sglang.sim.link import Links, bring_in, moved_twice_s
from conserve_sglang.sim.playing import Playing
from conserve_sglang.sim.power import WorkerEnergy
from conserve_sglang.sim.records import ConversationRecord, Outcome
from conserve_sglang.sim.turn_run import TurnRun
from conserve_sglang.workload import ConversationPlan

Sink = Callable[[ConversationRecord], None]

_CAUSES = {
    RefusalReason.PREFIX_MISSING: FailureCause.PREFIX_MISSING,
    RefusalReason.APPEND_TOO_LARGE: FailureCause.APPEND_TOO_LARGE,
}


class Simulation:
    """Plays conversations on a deployment; each finished one is handed to `sink` and forgotten.

    `watch`, for tests, is called after every event with the dispatcher.
    """

    def __init__(
        self, deployment: Deployment, sink: Sink, watch: Callable[[Dispatcher], None] | None = None
    ) -> None:
        self.dispatcher = Dispatcher(deployment.policy, deployment.settings)
        self.kernel = Kernel()
        self.links, self.bootstrap = Links(), Bootstrap()
        self.num_events = 0
        self._sink, self._watch = sink, watch
        self._says_goodbye = deployment.says_goodbye
        self._events: deque[Event] = deque()
        self._is_telling = False
        self._tick_at_s: float | None = None
        self._num_turns = 0
        self.on_turn: Callable[[Playing, float], None] = lambda playing, now: None
        self._runs: dict[TurnId, TurnRun] = {}
        self._playing: dict[ConversationId, Playing] = {}
        self._coming: Iterator[ConversationPlan] = iter(())
        self._next: ConversationPlan | None = None
        self.workers = {
            worker.spec.worker_id: ChangingWorker(worker, self.kernel, self)
            for worker in deployment.workers
        }
        for worker in deployment.workers:
            self._tell(WorkerUp(spec=worker.spec), 0.0)
        for loss in deployment.losses:
            self.kernel.at(loss.at_s, partial(self._lose, loss))

    def run(self, conversations: Iterable[ConversationPlan]) -> float:
        """Play all conversations, which come in order of arrival; the time of the last event."""
        self._coming = iter(conversations)
        self._await_next()
        if not self.is_over and not self.kernel.run():
            raise AssertionError(f"{len(self._playing)} conversations came to a standstill")
        return self.kernel.now

    def energy(self, window_s: float) -> tuple[WorkerEnergy, ...]:
        """What each worker has used by now, modelled, of a window that holds all the work."""
        return tuple(worker.energy(window_s) for worker in self.workers.values())

    def tell(self, event: Event) -> None:
        """Tell the dispatcher something from outside, now."""
        self._tell(event, self.kernel.now)

    @property
    def is_over(self) -> bool:
        """Whether every conversation has been played."""
        return not self._playing and self._next is None

    # clients

    def _await_next(self) -> None:
        self._next = next(self._coming, None)
        if self._next is not None:
            self.kernel.at(max(self._next.arrived_at_s, self.kernel.now), self._open)

    def _open(self, now: float) -> None:
        plan = self._next
        assert plan is not None
        if plan.arrived_at_s < now:
            raise ValueError(f"{plan.conversation_id} does not come in order of arrival")
        if plan.conversation_id in self._playing:
            raise ValueError(f"{plan.conversation_id} arrives twice at once")
        playing = self._playing[plan.conversation_id] = Playing(plan)
        self._await_next()
        self._ask(playing, now)

    def _ask(self, playing: Playing, now: float) -> None:
        """The client sends the next turn."""
        plan, index = playing.plan, len(playing.records)
        turn, conversation_id = plan.turns[index], plan.conversation_id
        self._num_turns += 1
        turn_id = TurnId(self._num_turns)
        run = self._runs[turn_id] = TurnRun(turn_id, conversation_id, turn, now)
        run.wants_gaps = index + 1 == len(plan.turns)
        for prefiller in playing.prefillers:
            prefiller.pool.trim(conversation_id, turn.shared_tokens)
        self._tell(TurnArrived(turn_id, conversation_id, turn.input_tokens, True, plan.tenant), now)

    def _end(self, run: TurnRun, outcome: Outcome, now: float, why: str = "") -> None:
        playing = self._playing.pop(run.conversation_id)
        unanswered_j = 0.0 if outcome is Outcome.ANSWERED else run.prefill_j + run.decode_j
        if self._says_goodbye or outcome is not Outcome.ANSWERED:
            self._tell(ConversationEnded(conversation_id=run.conversation_id), now)
        self._sink(
            ConversationRecord(
                plan=playing.plan,
                outcome=outcome,
                turns=tuple(playing.records),
                last_turn_gaps=run.gaps if outcome is Outcome.ANSWERED else (),
                why=why,
                modelled_unanswered_j=unanswered_j,
            )
        )
        if self.is_over:
            self.kernel.stop()

    # the dispatcher

    def _tell(self, event: Event, now: float) -> None:
        """Hand an event in and carry the commands out; events that come of it wait their turn."""
        events = self._events
        if self._is_telling:
            events.append(event)
            return
        self._is_telling = True
        while True:
            self.num_events += 1
            for command in self.dispatcher.handle(event, now):
                self._obey(command, now)
            if self._watch is not None:
                self._watch(self.dispatcher)
            if not events:
                break
            event = events.popleft()
        self._is_telling = False
        if self._tick_at_s is None or self.dispatcher.num_queued:
            self._set_tick(now)

    def _set_tick(self, now: float) -> None:
        due = self.dispatcher.next_deadline_at_s
        if due is not None and (self._tick_at_s is None or due < self._tick_at_s):
            self._tick_at_s = max(due, now)
            self.kernel.at(self._tick_at_s, self._tick)

    def _tick(self, now: float) -> None:
        if now != self._tick_at_s:
            return  # an earlier one was needed meanwhile
        self._tick_at_s = None
        due = self.dispatcher.next_deadline_at_s
        if due is not None and due <= now:
            self._tell(Tick(), now)
        else:
            self._set_tick(now)

    def _obey(self, command: Command, now: float) -> None:
        if isinstance(command, SendTurn):
            self._send(command, now)
        elif isinstance(command, ReleaseConversation):
            self.workers[command.worker_id].release(command.conversation_id)
        elif isinstance(command, RejectTurn):
            run = self._runs.pop(command.turn_id)
            self._end(run, Outcome.REJECTED, now, command.reason.value)
        # Turns of a lost worker are aborted by `_notice`; circuit breakers are the router's.

    def _send(self, command: SendTurn, now: float) -> None:
        run, workers = self._runs[command.turn_id], self.workers
        run.begin(command)
        decoder = workers[command.decoder]
        prefiller = None if command.prefiller is None else workers[command.prefiller]
        if not decoder.fits(run.whole_tokens) or (
            prefiller is not None and not prefiller.fits(run.input_tokens)
        ):
            del self._runs[run.turn_id]
            self._tell(TurnAbandoned(turn_id=run.turn_id), now)
            self._end(run, Outcome.NEVER_FITS, now, "larger than a worker's KV pool")
        elif prefiller is None:
            bring_in(run, decoder, self.kernel, now)
        else:
            playing = self._playing[run.conversation_id]
            if prefiller not in playing.prefillers:
                playing.prefillers.append(prefiller)
            held = decoder.pool.resident(run.conversation_id)
            decoder.reserve(run, now)
            wait_s = self.bootstrap.wait_s(
                prefiller.spec.worker_id, command.decoder, prefiller.perf.first_handoff_s, now
            )
            if command.fetches_kv:
                self._fetch_kv(run, min(held, run.shared_tokens), wait_s, now)
            else:
                bring_in(run, prefiller, self.kernel, now, wait_s)

    def _fetch_kv(self, run: TurnRun, tokens: int, wait_s: float, now: float) -> None:
        """Move what the decoder has of a conversation to the prefiller, before the prefill."""
        command = run.command
        assert command.prefiller is not None
        decoder, prefiller = self.workers[command.decoder], self.workers[command.prefiller]
        arrives_at_s = self.links.transfer(
            decoder.perf, command.decoder, command.prefiller, tokens, now
        )

        def arrived(now: float) -> None:
            if run.heir is not None:
                return
            prefiller.hold_copy(run.conversation_id, tokens)
            prefiller.prefill(run, now)

        self.kernel.at(arrives_at_s + moved_twice_s(run.input_tokens) + wait_s, arrived)

    # workers that are lost

    def _lose(self, loss: WorkerLoss, now: float) -> None:
        self.workers[loss.worker_id].lose(now)
        self.kernel.at(now + loss.noticed_after_s, partial(self._notice, loss))

    def _notice(self, loss: WorkerLoss, now: float) -> None:
        self._tell(WorkerLost(worker_id=loss.worker_id), now)
        for run in [run for run in self._runs.values() if run.is_at_work]:
            if loss.worker_id == run.command.decoder:
                self._fail(run, FailureCause.DECODER_FAILED, now)
            elif loss.worker_id == run.command.prefiller and not run.has_moved:
                self._fail(run, FailureCause.PREFILLER_FAILED, now)
        if loss.back_after_s is not None:
            self.kernel.at(now + loss.back_after_s, partial(self._bring_back, loss))

    def _bring_back(self, loss: WorkerLoss, now: float) -> None:
        worker = self.workers[loss.worker_id]
        worker.come_back()
        self.bootstrap.forget(loss.worker_id)
        self._tell(WorkerUp(spec=worker.spec), now)

    def _fail(self, run: TurnRun, cause: FailureCause, now: float) -> None:
        """An attempt has lost one of its workers: the turn goes on from what its client has."""
        command = run.command
        heir = self._runs[run.turn_id] = run.again()
        if cause is FailureCause.PREFILLER_FAILED:
            self.workers[command.decoder].drop_room(run, now)
        elif command.prefiller is not None and not run.has_moved:
            self.workers[command.prefiller].drop_prefill(run, now)
        if cause is FailureCause.DECODER_FAILED and heir.told_tokens:
            told = TurnInterrupted(turn_id=run.turn_id, output_tokens=heir.told_tokens)
            self._tell(told, now)
        else:
            self._tell(TurnFailed(turn_id=run.turn_id, cause=cause), now)

    # what workers report

    def refused(self, run: TurnRun, refusal: Refusal, now: float) -> None:
        """A decoder will not prefill a local turn: to be placed again."""
        run.is_at_work = False
        self._tell(TurnFailed(turn_id=run.turn_id, cause=_CAUSES[refusal.reason]), now)

    def prefilled(self, run: TurnRun, now: float) -> None:
        """A prefiller has a prompt's KV whole."""
        run.is_prefilled = True
        self._move_kv(run, now)

    def has_room(self, run: TurnRun, now: float) -> None:
        """A decoder holds room for a turn that is prefilled elsewhere."""
        run.has_room = True
        self._move_kv(run, now)

    def _move_kv(self, run: TurnRun, now: float) -> None:
        """Move what the decoder lacks, once both sides are ready."""
        command = run.command
        if not (run.is_prefilled and run.has_room):
            return
        assert command.prefiller is not None
        perf = self.workers[command.prefiller].perf
        arrives_at_s = self.links.transfer(
            perf,
            command.prefiller,
            command.decoder,
            run.input_tokens - run.cached_tokens,
            now,
        )
        handed_over_at_s = arrives_at_s + perf.handoff_s(run.input_tokens)
        self.kernel.at(handed_over_at_s, partial(self._moved, run))

    def _moved(self, run: TurnRun, now: float) -> None:
        command = run.command
        assert command.prefiller is not None
        prefiller, decoder = self.workers[command.prefiller], self.workers[command.decoder]
        if run.heir is not None or prefiller.is_lost or decoder.is_lost:
            return
        run.has_moved = True
        prefiller.sent(run, now)
        decoder.receive(run, now)

    def first_token(self, run: TurnRun, now: float) -> None:
        """A turn's first token is out."""
        self._tell(FirstToken(run.turn_id), now)

    def done(self, run: TurnRun, now: float) -> None:
        """A turn is answered whole."""
        del self._runs[run.turn_id]
        playing = self._playing[run.conversation_id]
        records, turns = playing.records, playing.plan.turns
        record = run.record(len(records) + 1, now)
        records.append(record)
        self.on_turn(playing, now)
        done = TurnDone(run.turn_id, record.input_tokens, record.output_tokens, run.cached_tokens)
        self._tell(done, now)
        if len(records) == len(turns):
            self._end(run, Outcome.ANSWERED, now)
        else:
            self.kernel.at(now + turns[len(records)].gap_s, partial(self._ask, playing))
