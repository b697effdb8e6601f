"""The model meter: a profile's power times observed work, and never called measured."""

import pytest

from conserve_sglang.core.errors import MeterError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.phase_log import Phase
from conserve_sglang.energy.meter import Device, Kind, Origin
from conserve_sglang.energy.model import KEPT_S, ModelMeter
from conserve_sglang.power.attribution import Part, Span
from tests.energy.profiles import IDLE_W, a_profile

GPU = Device(device_id="model-gpu-0", kind=Kind.GPU, name="X1, modelled")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def a_meter() -> tuple[ModelMeter, Clock]:
    clock = Clock()
    return ModelMeter([(GPU, a_profile())], clock), clock


def span(start_s: float, end_s: float, joules: float, worker: str = "d-0") -> Span:
    return Span(WorkerId(worker), start_s, end_s, (Part("a", 1, Phase.DECODE, 1.0),), joules)


def test_device_without_work_draws_its_idle_power() -> None:
    meter, clock = a_meter()
    clock.now_s += 10
    reading = meter.read()["model-gpu-0"]
    assert reading.joules == pytest.approx(10 * IDLE_W)
    assert reading.watts == pytest.approx(IDLE_W)


def test_every_reading_says_modelled_and_names_its_profile() -> None:
    meter, clock = a_meter()
    clock.now_s += 1
    reading = meter.read()["model-gpu-0"]
    assert reading.origin is Origin.MODELLED
    assert reading.source == "model: profile made-up x observed work"


def test_work_draws_what_was_predicted_for_it_and_idle_the_rest() -> None:
    meter, clock = a_meter()
    meter.worked("model-gpu-0", span(101, 103, 500))
    clock.now_s = 110.0
    assert meter.read()["model-gpu-0"].joules == pytest.approx(500 + 8 * IDLE_W)
    assert meter.joules("model-gpu-0", 102, 104) == pytest.approx(250 + IDLE_W)


def test_batches_at_once_draw_no_more_than_the_device_may() -> None:
    meter, _ = a_meter()
    meter.worked("model-gpu-0", span(101, 103, 600))
    meter.worked("model-gpu-0", span(101, 103, 600, "p-0"))
    assert meter.joules("model-gpu-0", 101, 103) == pytest.approx(2 * 350)


def test_what_is_long_past_is_forgotten_but_counted() -> None:
    meter, clock = a_meter()
    meter.worked("model-gpu-0", span(101, 103, 500))
    total = 500 - 2 * IDLE_W
    for _ in range(50):
        clock.now_s += KEPT_S / 10
        reading = meter.read()["model-gpu-0"]
        assert reading.joules == pytest.approx(total + (clock.now_s - 100) * IDLE_W)
    assert meter._modelled["model-gpu-0"].spans == []


@pytest.mark.parametrize(("has_watts", "idle_w"), [(False, 40.0), (True, None)])
def test_profile_without_power_is_refused(has_watts: bool, idle_w: float | None) -> None:
    with pytest.raises(MeterError, match="has no watts"):
        ModelMeter([(GPU, a_profile(has_watts=has_watts, idle_w=idle_w))])
