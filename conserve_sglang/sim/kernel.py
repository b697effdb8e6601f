"""Virtual time: what is due next."""

from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[float], None]


class Kernel:
    """A heap of actions by time; of two due at once, the one scheduled first goes first."""

    __slots__ = ("_heap", "_number", "now")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action]] = []
        self._number = 0
        self.now = 0.0

    def at(self, time_s: float, action: Action) -> None:
        """Have `action(time)` called at `time_s`, which must not have passed."""
        if time_s < self.now:
            raise ValueError(f"{time_s} has passed; it is {self.now}")
        self._number += 1
        heappush(self._heap, (time_s, self._number, action))

    def step(self) -> bool:
        """Do what is due next; False when nothing is."""
        if not self._heap:
            return False
        self.now, _, action = heappop(self._heap)
        action(self.now)
        return True
