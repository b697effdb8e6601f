"""A turn whose client asked for its place and sends it to the workers by itself."""

from collections.abc import Callable

from conserve_sglang.core.ids import TenantId, TurnId
from conserve_sglang.router.measured import MeasuredTurn
from conserve_sglang.router.payload import Endpoint, Payload
from conserve_sglang.router.ports import Told

Hear = Callable[[Told], None]


class PlacedTurn(MeasuredTurn):
    """Its number is negative: no process holds its sockets. Its client knows it by `public_id`,
    which says nothing of other turns."""

    __slots__ = (
        "deadline_s",
        "expires_at_s",
        "hear",
        "history",
        "input_tokens",
        "is_last_known",
        "name",
        "public_id",
        "salt",
        "speaks_to_user",
    )

    def __init__(
        self,
        turn_id: TurnId,
        public_id: str,
        tenant: TenantId,
        name: bytes | None,
        endpoint: Endpoint,
        hear: Hear,
    ) -> None:
        super().__init__(turn_id)
        self.public_id = public_id
        self.tenant = tenant
        self.name = name
        self.payload = Payload(endpoint, {}, is_stream=False)
        self.input_tokens = 0
        self.history = None
        self.deadline_s: float | None = None
        self.salt = b""  # the member that keeps its tenant's KV apart
        self.hear: Hear | None = hear  # its client waits for a placement
        self.expires_at_s = 0.0
        self.is_last_known: bool | None = None  # the turn reported with it
        self.speaks_to_user = False  # by its client's report

    @property
    def path(self) -> str:
        return "/v1/place"

    @property
    def status(self) -> int | None:
        return None if self.problem is None else self.problem.status

    def began_after(self, first_token_s: float) -> None:
        """Its client says when the first token came."""
        self.payload.is_stream = self.has_begun = True
        self.first_byte_at_s = self.arrived_at_s + first_token_s

    def start_again(self) -> None:
        """The attempt failed."""
        self.has_begun = False
        self.timings = None

    def spoke_at_s(self) -> float | None:
        """See `Arrival`."""
        return self.first_byte_at_s if self.speaks_to_user else None
