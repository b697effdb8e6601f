"""Watts over short windows: samples a meter and cuts windows at its counter's own steps."""

import contextlib
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy.meter import Meter, Origin

SAMPLE_S = 0.01
LEAST_WINDOW_S = 1.0
"""Ten of the slowest counter's steps (100 ms): what a window's ends get wrong weighs little."""


@dataclass(slots=True)
class _Track:
    """When a device's counter was seen to change, and to what."""

    times: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    def add(self, at_s: float, joules: float) -> None:
        if not self.joules or joules != self.joules[-1]:
            self.times.append(at_s)
            self.joules.append(joules)

    def mean_watts(self, begin_s: float, end_s: float) -> float | None:
        """From the last step before to the first after; None without two such steps. What was
        read first is no step: it may have stood so for a while."""
        first = max(1, bisect_right(self.times, begin_s) - 1)
        last = min(len(self.times) - 1, bisect_left(self.times, end_s))
        if last <= first:
            return None
        seconds = self.times[last] - self.times[first]
        return (self.joules[last] - self.joules[first]) / seconds


class PowerTrack:
    """Samples some devices of a meter in a thread; `watts` is their mean over a window.

    `origin` is measured only if every sample was; `source` names the counter.
    """

    def __init__(
        self, meter: Meter, device_ids: Collection[str], *, sample_s: float = SAMPLE_S
    ) -> None:
        self._meter = meter
        self._sample_s = sample_s
        self._tracks = {name: _Track() for name in device_ids}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._error: MeterError | None = None
        self.origin = Origin.MEASURED
        self.source = ""
        self._sample()
        self._thread = threading.Thread(target=self._run, daemon=True, name="power")

    @contextlib.contextmanager
    def running(self) -> Iterator["PowerTrack"]:
        """Samples inside the block, and closes the meter after it."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            self._thread.join()
            self._meter.close()

    def watts(self, begin_s: float, end_s: float) -> float | None:
        """Mean power of one device over a window; None if the counters were too slow for it.

        Waits for the counters' next steps, a tenth of a second or so. Raises `MeterError` if the
        meter stopped telling.
        """
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and not self._has_stepped(end_s):
            time.sleep(SAMPLE_S)
        if self._error is not None:
            raise self._error
        with self._lock:
            found = [track.mean_watts(begin_s, end_s) for track in self._tracks.values()]
        known = [watts for watts in found if watts is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None

    def _has_stepped(self, since_s: float) -> bool:
        with self._lock:
            return all(track.times[-1] >= since_s for track in self._tracks.values())

    def _run(self) -> None:
        while not self._stopped.wait(self._sample_s):
            try:
                self._sample()
            except MeterError as error:
                self._error = error
                return

    def _sample(self) -> None:
        readings = self._meter.read()
        with self._lock:
            for name, track in self._tracks.items():
                if name not in readings:
                    raise MeterError(
                        f"the meter has no device {name}; it has {', '.join(readings)}"
                    )
                reading = readings[name]
                track.add(reading.at_s, reading.joules)
                self.source = reading.source
                if reading.origin is not Origin.MEASURED:
                    self.origin = Origin.MODELLED
