"""How long a client may take: counted in sweeps over all connections, so that no request pays for
a timer."""

from conserve_sglang.router.request_reader import RequestReader

SWEEP_INTERVAL_S = 10.0
MAX_HEAD_SWEEPS = 6  # a head takes a minute at most
MAX_REQUEST_SWEEPS = 30  # a whole request five minutes, however it trickles
MAX_QUIET_SWEEPS = 60  # ten minutes without a byte: kept-alive connections
MAX_STUCK_SWEEPS = 6  # a minute in which a client takes next to nothing of its answer
MIN_TAKEN_BYTES = 4096  # less than this between two sweeps is next to nothing


class Patience:
    """What the sweeps, one every `SWEEP_INTERVAL_S`, have seen of one connection."""

    __slots__ = ("num_head", "num_quiet", "num_request", "num_stuck", "unsent_bytes")

    def __init__(self) -> None:
        self.num_head = 0  # sweeps in the head of one request
        self.num_request = 0  # in one request
        self.num_quiet = 0  # without a byte
        self.num_stuck = 0
        self.unsent_bytes = 0  # at the last sweep, of a client that does not keep up

    def is_overdue(self, reader: RequestReader) -> bool:
        """Sweep a connection whose client has the word: whether its request takes too long."""
        self.num_quiet += 1
        self.num_head = self.num_head + 1 if reader.is_in_head else 0
        self.num_request = self.num_request + 1 if reader.is_in_request else 0
        return self.num_head > MAX_HEAD_SWEEPS or self.num_request > MAX_REQUEST_SWEEPS

    @property
    def is_quiet(self) -> bool:
        """Whether nothing came for too long."""
        return self.num_quiet > MAX_QUIET_SWEEPS

    def is_stuck(self, unsent_bytes: int) -> bool:
        """Sweep a client that did not keep up: whether it took next to nothing for too long."""
        if self.unsent_bytes - unsent_bytes >= MIN_TAKEN_BYTES:
            self.num_stuck = 0
        else:
            self.num_stuck += 1
        self.unsent_bytes = max(unsent_bytes, 1)
        return self.num_stuck > MAX_STUCK_SWEEPS
