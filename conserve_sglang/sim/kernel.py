"""Virtual time: what is due next."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush

Action = Callable[[float], None]


class Kernel:
    """A heap of actions by time; of two due at once, the one scheduled first goes first."""

    __slots__ = ("_heap", "_is_stopped", "_number", "now")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action]] = []
        self._number = 0
        self._is_stopped = False
        self.now = 0.0

    def at(self, time_s: float, action: Action) -> None:
        """Have `action(time)` called at `time_s`, which must not have passed."""
        if time_s < self.now:
            raise ValueError(f"{time_s} has passed; it is {self.now}")
        self._number += 1
        heappush(self._heap, (time_s, self._number, action))

    def run(self) -> bool:
        """Do what is due next, one after the other; False when nothing is, before `stop`."""
        heap, self._is_stopped = self._heap, False
        with _few_collections():
            while heap and not self._is_stopped:
                now, _, action = heappop(heap)
                self.now = now
                action(now)
        return self._is_stopped

    def stop(self) -> None:
        """Have `run` return after the action in progress."""
        self._is_stopped = True


@contextmanager
def _few_collections() -> Iterator[None]:
    """Have Python look for reference cycles seldom: a run makes none, and on a thousand workers
    looking through all that is alive takes a tenth of the time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
