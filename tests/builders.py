"""Small builders for tests of the pure layers."""

from conserve_sglang.core.ids import ConversationId, TierName, TurnId, WorkerId
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role, WorkerSpec
from conserve_sglang.dispatch import (
    Command,
    Dispatcher,
    DispatchSettings,
    Event,
    TurnArrived,
    WorkerUp,
    validate,
)
from conserve_sglang.policy import TurnView, make_policy
from conserve_sglang.policy.api import PhaseOneCause

P0, P1 = WorkerId("p0"), WorkerId("p1")
D0, D1, D2 = WorkerId("d0"), WorkerId("d1"), WorkerId("d2")


def a_worker(name: str, capacity: int = 10_000) -> WorkerSpec:
    """A worker whose role is told by its first letter: p, d or m."""
    role = {"p": Role.PREFILL, "d": Role.DECODE, "m": Role.MIXED}[name[0]]
    return WorkerSpec(
        worker_id=WorkerId(name), role=role, tier=TierName(role.value), kv_capacity_tokens=capacity
    )


def a_turn_view(
    *,
    input_tokens: int = 100,
    pinned: WorkerId | None = None,
    resident: int = 0,
    cause: PhaseOneCause | None = None,
    arrival: int = 0,
    needed: int | None = None,
) -> TurnView:
    """A turn as a policy sees it."""
    return TurnView(
        arrival_number=arrival,
        input_tokens=input_tokens,
        needed_tokens=input_tokens if needed is None else needed,
        pinned_decoder=pinned,
        resident_tokens=resident,
        phase_one_cause=cause,
    )


def an_arrival(turn: int, conversation: str = "a", tokens: int = 1000) -> TurnArrived:
    """A turn arrives with a counted prompt."""
    return TurnArrived(
        turn_id=TurnId(turn), conversation_id=ConversationId(conversation), input_tokens=tokens
    )


class Desk:
    """A dispatcher that is validated after each event; time is its own."""

    def __init__(
        self,
        *workers: str,
        policy: str = "conserve",
        capacity: int = 10_000,
        settings: DispatchSettings | None = None,
        **params: float,
    ) -> None:
        choice = PolicyChoice(name=policy, params=params)
        self.dispatcher = Dispatcher(
            make_policy(choice), settings or DispatchSettings(reserve_output_tokens=100)
        )
        self.now = 0.0
        for name in workers:
            self.tell(WorkerUp(spec=a_worker(name, capacity)))

    def tell(self, event: Event) -> list[Command]:
        """Handle one event and check that the books add up."""
        commands = self.dispatcher.handle(event, self.now)
        validate(self.dispatcher)
        return commands
