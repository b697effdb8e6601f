"""A meter for machines that measure nothing: a profile's power times the work that was observed.

While a worker of a device runs a batch, the device draws what the profile says of that batch;
else its idle power. All of it is modelled, and says so.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy.meter import Device, Origin, Reading
from conserve_sglang.power.attribution import Span, union_s
from conserve_sglang.profiles import Profile

KEPT_S = 120.0
RECENT_S = 1.0


@dataclass(slots=True)
class _Modelled:
    device: Device
    idle_w: float
    most_w: float | None
    source: str
    spans: list[Span] = field(default_factory=list)
    settled_j: float = 0.0
    settled_at_s: float = 0.0


class ModelMeter:
    """Devices whose power is modelled: each with the profile of what runs on it.

    `worked` tells it of batches; `read` counts those it was told of. Raises `MeterError` for a
    profile without watts or idle power.
    """

    def __init__(
        self,
        devices: Sequence[tuple[Device, Profile]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._modelled: dict[str, _Modelled] = {}
        now = clock()
        for device, profile in devices:
            if not profile.has_watts or profile.idle_w is None:
                raise MeterError(
                    f"Profile {profile.name} has no watts, so no energy can be modelled from it."
                    " Use one that has power and idle power."
                )
            self._modelled[device.device_id] = _Modelled(
                device,
                profile.idle_w,
                profile.power_cap_w or profile.tdp_w,
                f"model: profile {profile.name} x observed work",
                settled_at_s=now,
            )

    def devices(self) -> tuple[Device, ...]:
        """As given."""
        return tuple(each.device for each in self._modelled.values())

    def worked(self, device_id: str, span: Span) -> None:
        """A batch ran there; one without predicted joules draws idle power."""
        self._modelled[device_id].spans.append(span)

    def joules(self, device_id: str, start_s: float, end_s: float) -> float:
        """What the device used between two times, by the batches told of so far.

        Batches of several workers at once add up, to no more than the device may draw.
        """
        one = self._modelled[device_id]
        inside = [(span, min(span.end_s, end_s) - max(span.start_s, start_s)) for span in one.spans]
        inside = [(span, seconds) for span, seconds in inside if seconds > 0 and span.joules]
        busy_s = union_s(((span.start_s, span.end_s) for span, _ in inside), start_s, end_s)
        active_j = sum(
            (span.joules or 0.0) * seconds / (span.end_s - span.start_s) for span, seconds in inside
        )
        if one.most_w is not None:
            active_j = min(active_j, one.most_w * busy_s)
        return active_j + one.idle_w * (end_s - start_s - busy_s)

    def idle_w(self, device_id: str) -> float:
        """The profile's."""
        return self._modelled[device_id].idle_w

    def read(self) -> Mapping[str, Reading]:
        """Each device now; watts are the mean of the last second."""
        now = self._clock()
        return {device_id: self._read(device_id, now) for device_id in self._modelled}

    def close(self) -> None:
        """Nothing is held."""

    def _read(self, device_id: str, now: float) -> Reading:
        one = self._modelled[device_id]
        keep_from_s = now - KEPT_S
        if one.settled_at_s < keep_from_s:
            one.settled_j += self.joules(device_id, one.settled_at_s, keep_from_s)
            one.settled_at_s = keep_from_s
            one.spans = [span for span in one.spans if span.end_s > keep_from_s]
        recent_s = max(one.settled_at_s, now - RECENT_S)
        seconds = now - recent_s
        watts = self.joules(device_id, recent_s, now) / seconds if seconds > 0 else one.idle_w
        return Reading(
            device_id=device_id,
            at_s=now,
            joules=one.settled_j + self.joules(device_id, one.settled_at_s, now),
            watts=watts,
            origin=Origin.MODELLED,
            source=one.source,
        )
