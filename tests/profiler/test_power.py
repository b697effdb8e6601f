"""Windows are cut at the counter's own steps, so that slow counters do not falsify them."""

import math
import subprocess
import sys
import time

import pytest

from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy.meter import Device, Kind, Origin, Reading
from conserve_sglang.profiler.cpu_power import (
    BUSY_W_PER_THREAD,
    DEVICE_ID,
    IDLE_W_PER_THREAD,
    CpuModelMeter,
)
from conserve_sglang.profiler.power import PowerTrack


class Steps:
    """A counter of a constant power that changes only every `period_s`."""

    def __init__(self, watts: float, period_s: float = 0.05, fails_after_s: float = 99.0) -> None:
        self._watts, self._period_s, self._fails_after_s = watts, period_s, fails_after_s
        self._began_s = time.monotonic()
        self.is_closed = False

    def devices(self) -> tuple[Device, ...]:
        return (Device(device_id="a", kind=Kind.GPU, name="A"),)

    def read(self) -> dict[str, Reading]:
        now = time.monotonic() - self._began_s
        if now > self._fails_after_s:
            raise MeterError("the device fell off the bus")
        ticks = math.floor(now / self._period_s)
        return {
            name: Reading(
                device_id=name,
                at_s=self._began_s + now,
                joules=ticks * self._period_s * self._watts * share,
                watts=None,
                origin=Origin.MODELLED,
                source="steps",
            )
            for name, share in (("a", 1.0), ("b", 3.0))
        }

    def close(self) -> None:
        self.is_closed = True


def window(track: PowerTrack, seconds: float) -> float | None:
    begin_s = time.monotonic()
    time.sleep(seconds)
    return track.watts(begin_s, begin_s + seconds)


def test_power_between_the_counters_steps() -> None:
    meter = Steps(200.0)
    with PowerTrack(meter, ["a"]).running() as track:
        time.sleep(0.25)
        assert window(track, 0.6) == pytest.approx(200, rel=0.15)
    assert meter.is_closed
    assert (track.origin, track.source) == (Origin.MODELLED, "steps")


def test_watts_are_of_one_device() -> None:
    with PowerTrack(Steps(200.0), ["a", "b"]).running() as track:
        time.sleep(0.25)
        assert window(track, 0.6) == pytest.approx((200 + 600) / 2, rel=0.15)


def test_a_counter_too_slow_for_the_window_says_nothing() -> None:
    with PowerTrack(Steps(200.0, period_s=30.0), ["a"]).running() as track:
        assert window(track, 0.1) is None


def test_a_meter_that_fails_is_not_passed_over() -> None:
    track = PowerTrack(Steps(200.0, fails_after_s=0.1), ["a"])
    with track.running(), pytest.raises(MeterError, match="fell off"):
        window(track, 0.2)


def test_a_device_the_meter_does_not_have() -> None:
    with pytest.raises(MeterError, match=r"no device c; it has a, b"):
        PowerTrack(Steps(1.0), ["c"])


def _modelled_w(program: str, seconds: float = 1.0) -> float:
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        try:
            time.sleep(0.3)
            meter = CpuModelMeter([process.pid], num_threads=4)
            before = meter.read()[DEVICE_ID]
            time.sleep(seconds)
            after = meter.read()[DEVICE_ID]
        finally:
            process.kill()
    assert after.origin is Origin.MODELLED
    assert after.source.startswith("modelled")
    return (after.joules - before.joules) / (after.at_s - before.at_s)


def test_an_idle_process_draws_what_idle_cores_do() -> None:
    assert _modelled_w("import time; time.sleep(9)") == pytest.approx(
        4 * IDLE_W_PER_THREAD, rel=0.1
    )


def test_a_busy_child_counts_by_its_cpu_time() -> None:
    spin = "import os; os.fork()\nwhile os.getppid() != 1: pass"
    whole = 4 * IDLE_W_PER_THREAD + 2 * (BUSY_W_PER_THREAD - IDLE_W_PER_THREAD)
    found = _modelled_w(spin)
    assert 4 * IDLE_W_PER_THREAD < found <= whole * 1.05


def test_nobody_left_to_watch() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(MeterError, match="gone"):
        CpuModelMeter([process.pid]).read()
