"""Random event streams keep every promise of the dispatcher."""

import random
from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conserve_sglang.core.ids import ConversationId, TenantId, TurnId, WorkerId
from conserve_sglang.core.tier import FlagValue, PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch import (
    AbortTurn,
    Command,
    ConversationEnded,
    ConversationRestored,
    ConversationTaken,
    Dispatcher,
    DispatchSettings,
    Event,
    FailureCause,
    FirstToken,
    KvMoved,
    PeersReported,
    RejectTurn,
    RunningBounded,
    SendTurn,
    TenantsWeighed,
    Tick,
    TurnAbandoned,
    TurnArrived,
    TurnDone,
    TurnFailed,
    TurnInterrupted,
    WorkerAdmitted,
    WorkerDraining,
    WorkerLost,
    WorkerRemoved,
    WorkerUp,
    validate,
)
from conserve_sglang.policy import POLICIES, PlacementPolicy, make_policy
from tests.builders import a_worker

WORKERS = ("p0", "p1", "d0", "d1", "d2")
SETTINGS = DispatchSettings(
    max_phase_one_turns=4,
    max_tail_turns=2,
    max_turns_per_tenant=5,
    max_prefill_backlog_tokens=4000,
    max_conversations=6,
    max_conversations_per_tenant=4,
    queue_timeout_s=40.0,
    conversation_ttl_s=200.0,
    reclaim_idle_s=20.0,
    reserve_output_tokens=64,
    max_attempts=3,
)


TENANTS = (TenantId("a"), TenantId("b"), TenantId("c"))


def a_policy(name: str) -> PlacementPolicy:
    """A policy whose turns may be late, where it has that; one of them goes by history, one by
    what bringing KV back costs."""
    params: dict[str, FlagValue] = {}
    if name.startswith("work-conserving"):
        params = {"late_after_s": 20, "by_history": name == "work-conserving-tails"}
    return make_policy(PolicyChoice(name=name, params=params))


class Step(NamedTuple):
    """One random action; `pick` chooses among what is possible, `size` sizes it."""

    action: str
    pick: int
    size: int


ACTIONS = (
    ["arrive"] * 6 + ["first_token"] * 4 + ["done"] * 4 + ["fail"] * 2 + ["interrupt"] * 2
    + ["abandon", "end"]
    + ["lose", "up", "wait", "tick", "restored", "taken", "peers", "drain", "admit", "remove"]
    + ["weigh", "bound", "kv_moved", "kv_moved"]
)  # fmt: skip
steps = st.lists(
    st.builds(
        Step,
        action=st.sampled_from(ACTIONS),
        pick=st.integers(0, 999),
        size=st.integers(0, 5000),
    ),
    max_size=80,
)


class World:
    """Plays steps against a dispatcher as a faithful executor would, and keeps count."""

    def __init__(self, policy: str) -> None:
        self.dispatcher = Dispatcher(a_policy(policy), SETTINGS)
        self.now = 0.0
        self.log: list[tuple[Event, float, list[Command]]] = []
        self.sent: dict[TurnId, SendTurn] = {}
        self.with_first_token: set[TurnId] = set()
        self.with_kv: set[TurnId] = set()
        self.to_abort: set[TurnId] = set()
        self.open: set[TurnId] = set()
        self.of_ended: set[TurnId] = set()
        self.policy = policy
        self.output_tokens: Counter[TurnId] = Counter()
        self.num_continuations: Counter[TurnId] = Counter()
        self.answers: Counter[TurnId] = Counter()
        self.num_arrived = 0
        self.intake: dict[WorkerId, int | None] = {}
        for name in WORKERS:
            self.tell(WorkerUp(spec=a_worker(name, 6000)))

    def tell(self, event: Event) -> None:
        commands = self.dispatcher.handle(event, self.now)
        self.log.append((event, self.now, commands))
        if isinstance(event, TurnDone | TurnAbandoned):
            self.answer(event.turn_id)
        elif isinstance(event, WorkerUp):
            self.intake[event.spec.worker_id] = None
        elif isinstance(event, WorkerDraining):
            self.intake[event.worker_id] = 0
        elif isinstance(event, WorkerAdmitted):
            self.intake[event.worker_id] = event.num_turns
        for command in commands:
            self.obey(command)
        validate(self.dispatcher)

    def answer(self, turn_id: TurnId) -> None:
        self.answers[turn_id] += 1
        self.open.discard(turn_id)
        self.sent.pop(turn_id, None)
        self.to_abort.discard(turn_id)

    def obey(self, command: Command) -> None:
        if isinstance(command, SendTurn):
            assert command.turn_id in self.open
            assert command.turn_id not in self.sent, "sent twice at once"
            self.check_placement(command)
            self.sent[command.turn_id] = command
            self.with_first_token.discard(command.turn_id)
            self.with_kv.discard(command.turn_id)
        elif isinstance(command, RejectTurn):
            assert command.turn_id not in self.sent, "rejected while it runs"
            self.answer(command.turn_id)
        elif isinstance(command, AbortTurn):
            assert command.turn_id in self.sent
            self.to_abort.add(command.turn_id)

    def check_placement(self, command: SendTurn) -> None:
        up = {load.worker_id: load for load in self.dispatcher.worker_loads() if load.is_up}
        for worker_id in (command.decoder, command.prefiller):
            if worker_id is not None:
                self.take_in(worker_id)
        kept = self.policy == "work-conserving-tails" and command.prefiller is None
        assert kept or up[command.decoder].role is not Role.PREFILL
        if command.prefiller is None:
            is_continued = command.turn_id in self.num_continuations
            assert not (is_continued and self.policy == "conserve"), "continued without a phase 1"
            return
        assert up[command.prefiller].role is Role.PREFILL
        assert command.limits is None
        opening = [
            other
            for other in self.sent.values()
            if other.conversation_id == command.conversation_id
            and other.prefiller is not None
            and other.turn_id not in self.with_first_token | self.with_kv
            and other.turn_id not in self.of_ended
        ]
        assert not (command.keeps_kv and opening), "two transfers for one phase 1"

    def take_in(self, worker_id: WorkerId) -> None:
        left = self.intake[worker_id]
        assert left != 0, "given a turn though it takes none"
        self.intake[worker_id] = left and left - 1

    def play(self, step: Step) -> None:
        if step.action == "arrive":
            self.arrive(step)
        elif step.action in {"lose", "up", "drain", "admit", "remove"}:
            self.change_worker(step)
        elif step.action == "end":
            self.end(ConversationId(f"c{step.pick % 8}"))
        elif step.action in {"restored", "taken", "peers"}:
            self.hear_of_others(step)
        elif step.action == "wait":
            self.now += step.size / 50
        elif step.action == "weigh":
            self.tell(TenantsWeighed(weights={TENANTS[step.pick % 3]: 0.5 + step.size / 1000}))
        elif step.action == "bound":
            self.tell(RunningBounded(num_turns=(step.pick % 5) or None))
        elif step.action == "tick":
            self.tell(Tick())
        else:
            self.move_turn(step)

    def change_worker(self, step: Step) -> None:
        worker_id = WorkerId(WORKERS[step.pick % len(WORKERS)])
        if step.action == "lose":
            self.tell(WorkerLost(worker_id=worker_id))
        elif step.action == "up":
            self.tell(WorkerUp(spec=a_worker(worker_id, 6000)))
        elif step.action == "remove":
            self.tell(WorkerRemoved(worker_id=worker_id))
        elif step.action == "admit":
            num_turns = (None, 1, 2, 3)[step.size % 4]
            self.tell(WorkerAdmitted(worker_id=worker_id, num_turns=num_turns))
        else:
            self.tell(WorkerDraining(worker_id=worker_id))

    def end(self, conversation_id: ConversationId) -> None:
        self.of_ended |= {
            turn_id
            for turn_id, command in self.sent.items()
            if command.conversation_id == conversation_id
        }
        self.tell(ConversationEnded(conversation_id=conversation_id))

    def hear_of_others(self, step: Step) -> None:
        name = ConversationId(f"c{step.pick % 8}")
        worker = WorkerId(WORKERS[step.size % len(WORKERS)])
        if step.action == "peers":
            self.tell(PeersReported(kv_tokens={worker: step.size}, backlog_tokens={worker: 9}))
        elif step.action == "taken":
            self.tell(ConversationTaken(conversation_id=name))
        else:
            self.restore(name, worker, step)

    def restore(self, name: ConversationId, worker: WorkerId, step: Step) -> None:
        """As an executor hears it: the turn that was to bring the KV has not gone out yet."""
        known = self.dispatcher._conversations.get(name)
        if known is not None and known.opener is not None:
            self.sent.pop(known.opener.turn_id)
            self.to_abort.discard(known.opener.turn_id)
        self.tell(
            ConversationRestored(
                conversation_id=name,
                decoder=worker if worker.startswith("d") else None,
                resident_tokens=step.size if worker.startswith("d") else 0,
                prompt_tokens=step.size,
                num_turns=2,
                num_kv_transfers=1,
                idle_s=float(step.pick),
            )
        )

    def arrive(self, step: Step) -> None:
        turn_id = TurnId(self.num_arrived)
        self.num_arrived += 1
        self.open.add(turn_id)
        self.tell(
            TurnArrived(
                turn_id=turn_id,
                conversation_id=ConversationId(f"c{step.pick % 8}"),
                input_tokens=step.size,
                is_exact=step.pick % 3 != 0,
                tenant=TENANTS[step.pick % 8 % 3],
                deadline_s=step.size / 100 + 0.01 if step.size % 5 == 0 else None,
            )
        )

    def move_turn(self, step: Step) -> None:
        turns = sorted(self.open if step.action == "abandon" else self.sent)
        if not turns:
            return
        turn_id = turns[step.pick % len(turns)]
        if step.action == "first_token":
            self.with_first_token.add(turn_id)
            self.tell(FirstToken(turn_id=turn_id))
        elif step.action == "kv_moved":
            is_pair = self.sent[turn_id].prefiller is not None
            if is_pair and turn_id not in self.with_first_token:
                self.with_kv.add(turn_id)
                self.tell(KvMoved(turn_id))
        elif step.action == "done":
            self.tell(
                TurnDone(
                    turn_id=turn_id,
                    prompt_tokens=step.size,
                    output_tokens=step.pick,
                    cached_tokens=0,
                )
            )
        elif step.action == "abandon":
            self.tell(TurnAbandoned(turn_id=turn_id))
        elif step.action == "interrupt":
            if turn_id in self.with_first_token:
                self.interrupt(turn_id, step.size)
        elif turn_id not in self.with_first_token:
            self.fail(turn_id, list(FailureCause)[step.size % len(FailureCause)])

    def fail(self, turn_id: TurnId, cause: FailureCause) -> None:
        del self.sent[turn_id]
        self.to_abort.discard(turn_id)
        self.tell(TurnFailed(turn_id=turn_id, cause=cause))

    def interrupt(self, turn_id: TurnId, num_tokens: int) -> None:
        del self.sent[turn_id]
        self.to_abort.discard(turn_id)
        self.output_tokens[turn_id] += num_tokens
        self.num_continuations[turn_id] += 1
        event = TurnInterrupted(turn_id=turn_id, output_tokens=self.output_tokens[turn_id])
        self.tell(event)
        if self.num_continuations[turn_id] > SETTINGS.max_continuations:
            assert turn_id not in self.open, "continued without end"

    def finish(self) -> None:
        """Let everything end: no turn may be left behind."""
        for turn_id in sorted(self.to_abort):
            self.tell(TurnAbandoned(turn_id=turn_id))
        for name in WORKERS:
            self.tell(WorkerUp(spec=a_worker(name, 6000)))
        self.tell(PeersReported(kv_tokens={}, backlog_tokens={}))
        while self.open:
            self.now += 1000.0
            for turn_id in sorted(self.sent):
                self.tell(TurnAbandoned(turn_id=turn_id))
            self.tell(Tick())
        self.now += 1000.0
        self.tell(Tick())


@pytest.mark.parametrize("policy", POLICIES)
@given(script=steps)
@settings(max_examples=60, deadline=None)
def test_promises_hold_over_random_events(policy: str, script: list[Step]) -> None:
    world = World(policy)
    for step in script:
        world.play(step)
    world.finish()
    assert world.answers == Counter(dict.fromkeys(map(TurnId, range(world.num_arrived)), 1))
    assert world.dispatcher.num_conversations == 0
    assert world.dispatcher.num_queued == 0
    assert not world.dispatcher.running_turns()
    assert world.dispatcher.next_deadline_at_s is None
    for load in world.dispatcher.worker_loads():
        assert (load.resident_tokens, load.reserved_tokens, load.backlog_tokens) == (0, 0, 0)


A_TURN_FAILS_AFTER_ITS_DECODER_WAS_LOST = [
    *(Step("arrive", pick, 0) for pick in (0, 1, 1)),
    Step("done", 0, 0),
    Step("done", 0, 1),
    Step("lose", 253, 0),
    Step("fail", 0, 1),
]


@given(script=steps, policy=st.sampled_from(sorted(POLICIES)))
@example(script=A_TURN_FAILS_AFTER_ITS_DECODER_WAS_LOST, policy="ampd-like")
@settings(max_examples=100, deadline=None)
def test_same_events_same_commands(script: list[Step], policy: str) -> None:
    world = World(policy)
    for step in script:
        world.play(step)
    again = Dispatcher(a_policy(policy), SETTINGS)
    for event, now, commands in world.log:
        assert again.handle(event, now) == commands


def test_long_run_with_a_fixed_seed() -> None:
    rng = random.Random(20260601839)
    world = World("conserve")
    for _ in range(20_000):
        world.play(Step(rng.choice(ACTIONS), rng.randrange(1000), rng.randrange(5000)))
    world.finish()
    assert set(world.answers.values()) == {1}
    reasons = {c.reason.value for _, _, cs in world.log for c in cs if isinstance(c, SendTurn)}
    assert reasons >= {
        "first_turn", "pinned", "large_append", "prefix_missing", "decoder_lost", "reclaimed",
        "drained",
    }  # fmt: skip


@pytest.mark.parametrize("policy", ["conserve", "work-conserving", "conserve-pack", "static-ppd"])
def test_long_run_where_conversations_leave_busy_decoders(policy: str) -> None:
    """Workers stay up and answer most turns, so that there is room to go to."""
    actions = [*["arrive"] * 6, *["first_token"] * 4, *["done"] * 9, *["fail"] * 6, "wait", "end"]
    actions += ["lose", "up", "up", "drain", "admit", "admit", "restored", "abandon"]
    rng = random.Random(20261121)
    world = World(policy)
    for _ in range(3000):
        world.play(Step(rng.choice(actions), rng.randrange(1000), rng.randrange(800)))
    world.finish()
    assert set(world.answers.values()) == {1}
    reasons = {c.reason.value for _, _, cs in world.log for c in cs if isinstance(c, SendTurn)}
    assert "decoder_busy" in reasons
