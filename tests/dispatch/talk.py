"""What scripts of events have in common."""

from conserve_sglang.core.ids import TurnId
from conserve_sglang.dispatch import (
    BlameWorker,
    Command,
    FirstToken,
    RejectTurn,
    SendTurn,
    TurnDone,
)
from tests.builders import Desk, an_arrival


def sent(commands: list[Command]) -> SendTurn:
    (command,) = [c for c in commands if isinstance(c, SendTurn)]
    return command


def rejected(commands: list[Command]) -> RejectTurn:
    (command,) = [c for c in commands if not isinstance(c, BlameWorker)]
    assert isinstance(command, RejectTurn)
    return command


def finish(desk: Desk, turn: int, prompt: int = 1000, output: int = 50) -> list[Command]:
    return desk.tell(FirstToken(turn_id=TurnId(turn))) + desk.tell(
        TurnDone(turn_id=TurnId(turn), prompt_tokens=prompt, output_tokens=output, cached_tokens=0)
    )


def settled(*workers: str, policy: str = "conserve", **params: int) -> Desk:
    """One conversation "a" of 1,050 resident tokens, turn 1 answered."""
    desk = Desk(*workers, policy=policy, capacity=10_000, settings=None, **params)
    desk.tell(an_arrival(1))
    finish(desk, 1)
    return desk
