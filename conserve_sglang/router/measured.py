"""What is measured of a turn, whether its bytes cross the router or not."""

from conserve_sglang.core.ids import TurnId
from conserve_sglang.dispatch import SendTurn
from conserve_sglang.router.conversations import UNIDENTIFIED
from conserve_sglang.router.payload import Payload
from conserve_sglang.telemetry.metrics import Timings


class MeasuredTurn:
    """A turn as the meter and the listeners see it. Times are of the router's monotonic clock."""

    __slots__ = (
        "arrived_at_s",
        "command",
        "conversation",
        "first_byte_at_s",
        "forward",
        "has_begun",
        "payload",
        "timings",
        "turn_id",
    )

    def __init__(self, turn_id: TurnId) -> None:
        self.turn_id = turn_id
        self.payload: Payload
        self.conversation = UNIDENTIFIED
        self.forward = b""  # header lines of its client for the workers
        self.arrived_at_s = 0.0
        self.first_byte_at_s = 0.0
        self.has_begun = False  # when the first byte came is known
        self.command: SendTurn | None = None  # the last one
        self.timings: Timings | None = None  # the meter's, from the first byte on
