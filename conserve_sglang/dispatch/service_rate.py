"""How fast a queue is being served, as observed, and so when asking again may help."""

MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0
_WEIGHT = 1 / 16  # of the newest gap in the mean


class ServiceRate:
    """The mean time between two turns that leave a queue served, while somebody waits in it."""

    __slots__ = ("_last_at_s", "_mean_gap_s", "_num_served")

    def __init__(self) -> None:
        self._last_at_s = 0.0
        self._mean_gap_s = 0.0
        self._num_served = 0

    def begins(self, now: float) -> None:
        """The queue was empty, and somebody begins to wait."""
        self._last_at_s = now

    def served(self, now: float) -> None:
        """A turn left the queue for its workers."""
        gap_s = now - self._last_at_s
        self._last_at_s = now
        self._num_served += 1
        weight = max(_WEIGHT, 1 / self._num_served)  # a plain mean until there are enough
        self._mean_gap_s += (gap_s - self._mean_gap_s) * weight

    def retry_after_s(self, num_ahead: float, now: float) -> float:
        """When a turn that finds `num_ahead` others before it may come again.

        A queue that has stood still for a while is expected to go on standing as long.
        """
        stalled_s = max(0.0, now - self._last_at_s - self._mean_gap_s)
        wait_s = num_ahead * self._mean_gap_s + stalled_s
        return min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s))
