"""What is measured of a turn, whether its bytes cross the router or not."""

from conserve_sglang.core.ids import TenantId, TurnId
from conserve_sglang.dispatch import SendTurn
from conserve_sglang.router.conversations import UNIDENTIFIED
from conserve_sglang.router.payload import Payload
from conserve_sglang.router.problem import Problem
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
        "num_attempts",
        "num_continuations",
        "num_interruptions",
        "num_retries",
        "payload",
        "peer",
        "problem",
        "request_line",
        "tenant",
        "timings",
        "turn_id",
    )

    def __init__(self, turn_id: TurnId) -> None:
        self.turn_id = turn_id
        self.payload: Payload
        self.tenant: TenantId
        self.request_line: bytes  # see `request_ids`
        self.peer = ""  # its client's address, where there is an access log
        self.conversation = UNIDENTIFIED
        self.forward = b""  # header lines of its client for the workers
        self.arrived_at_s = 0.0
        self.first_byte_at_s = 0.0
        self.has_begun = False  # when the first byte came is known
        self.command: SendTurn | None = None  # the last one
        self.timings: Timings | None = None  # the meter's, from the first byte on
        self.num_attempts = self.num_retries = 0  # sent to workers, and of these after a failure
        self.num_interruptions = self.num_continuations = 0
        self.problem: Problem | None = None  # the error that its client was told

    @property
    def path(self) -> str:
        """What its client asked."""
        translation = self.payload.translation
        return self.payload.endpoint.value if translation is None else translation.path

    @property
    def status(self) -> int | None:
        """Of the answer's head; None if there was no answer, or not by the router."""
        if self.has_begun:
            return 200
        return None if self.problem is None else self.problem.status
