"""What a power cap or a lower SM clock does to a profile: estimated, point by point.

Let `P0` be what a GPU draws while it waits for its host, and `r` the SM clock over its maximum.

- Prefill is arithmetic: its active time grows as 1/r, and the power above P0 falls as r^2 (a round
  value between 1, voltage at its floor, and 3, voltage falling with the clock). A point's watts
  tell which share of its time is active.
- Decode is memory: its time does not depend on r. Half of its power above P0 is assumed to be the
  SMs' and to fall as r^2.
- A cap holds for the mean, waits included: it lowers r until that fits. Where no clock down to 0.4
  of the maximum fits, decode is stretched until its mean fits.
"""

import math
from dataclasses import replace

from conserve_sglang.core.errors import ProfileError
from conserve_sglang.profiles.estimator import CAP_SHARE, P0_SHARE
from conserve_sglang.profiles.hardware import gpu_named
from conserve_sglang.profiles.profile import DecodePoint, PrefillPoint, Profile, Provenance

LEAST_CLOCK = 0.4
SM_SHARE_OF_DECODE = 0.5
METHOD = "power above idle clock-squared, prefill time over clock, decode time as it was"


def with_knobs(
    profile: Profile, *, power_cap_w: float | None = None, sm_clock_mhz: int | None = None
) -> Profile:
    """The profile under a lower power cap, a lower SM clock lock, or both; estimated.

    Raises ProfileError for a knob above what the profile was taken at, and without watts and
    `tdp_w` to go by.
    """
    if power_cap_w is None and sm_clock_mhz is None:
        return profile
    if profile.tdp_w is None or not profile.has_watts:
        raise ProfileError(
            f"profile {profile.name} has no watts to tell what a cap or clock does; measure one"
        )
    now_w = profile.power_cap_w or profile.tdp_w
    cap_w = now_w if power_cap_w is None else power_cap_w
    if cap_w > now_w:
        raise ProfileError(
            f"profile {profile.name} was taken at {now_w:g} W, which tells nothing of {cap_w:g} W"
        )
    if cap_w <= P0_SHARE * profile.tdp_w:
        raise ProfileError(f"{profile.gpu}: {cap_w:g} W is less than it draws while it waits")
    ratio = _clock_ratio(profile, sm_clock_mhz)
    name = profile.name.removesuffix(f"-{now_w:.0f}w") + (
        f"-{cap_w:.0f}w" if power_cap_w is not None else ""
    )
    because = f"derived from {profile.name}: {METHOD}"
    tdp_w = profile.tdp_w
    return replace(
        profile,
        name=name + (f"-{sm_clock_mhz}mhz" if sm_clock_mhz is not None else ""),
        power_cap_w=cap_w,
        sm_clock_mhz=sm_clock_mhz if sm_clock_mhz is not None else profile.sm_clock_mhz,
        prefill=tuple(slowed_prefill(p, tdp_w, cap_w, ratio) for p in profile.prefill),
        decode=tuple(slowed_decode(p, tdp_w, cap_w, ratio) for p in profile.decode),
        provenance=Provenance(
            kind="estimated",
            source=f"{because}; there: {profile.provenance.source}",
            error="prefill under a cap: see bench/estimator.py; clocks: unknown",
        ),
        power_provenance=Provenance(
            kind="estimated", source=because, error="25 to 30 % either way"
        ),
    )


def slowed_prefill(
    point: PrefillPoint, tdp_w: float, cap_w: float, clock_ratio: float
) -> PrefillPoint:
    """A prefill under a cap and a clock, `clock_ratio` of the maximum."""
    if point.watts is None:
        return point
    least, full = P0_SHARE * tdp_w, CAP_SHARE * tdp_w
    active = min(1.0, max(0.0, (point.watts - least) / (full - least)))
    ratio = min(clock_ratio, _ratio_under(cap_w, least, full, active))
    waits_s, works_s = (1 - active) * point.seconds, active * point.seconds / ratio
    works_w = least + (full - least) * ratio**2
    seconds = waits_s + works_s
    low_w = min(point.watts, least)  # a point that draws less than P0 keeps its own
    watts = (waits_s * low_w + works_s * works_w) / seconds
    return replace(point, seconds=seconds, watts=watts, rel_ci=None)


def _ratio_under(cap_w: float, least: float, full: float, active: float) -> float:
    """The clock ratio at which the mean draw of work that is active for this share of its time
    (at full clock) is the cap; 1 when it never exceeds that."""
    room, above = cap_w - least, full - least
    if active * above <= room:
        return 1.0
    # (waits + active / r) room = active above r
    half = (1 - active) * room / (2 * active * above)
    return half + math.sqrt(half * half + room / above)


def slowed_decode(
    point: DecodePoint, tdp_w: float, cap_w: float, clock_ratio: float
) -> DecodePoint:
    """A decode step under a cap and a clock, `clock_ratio` of the maximum."""
    if point.watts is None:
        return point
    least = P0_SHARE * tdp_w
    above = max(0.0, point.watts - least)

    def drawn(ratio: float) -> float:
        return above * (1 - SM_SHARE_OF_DECODE + SM_SHARE_OF_DECODE * ratio**2)

    room = cap_w - least
    if drawn(clock_ratio) <= room:
        watts = min(point.watts, least) + drawn(clock_ratio)
        return replace(point, watts=watts, rel_ci=None)
    slowest = drawn(min(clock_ratio, LEAST_CLOCK))
    stretch = max(1.0, slowest / room)
    return replace(point, step_s=point.step_s * stretch, watts=cap_w, rel_ci=None)


def _clock_ratio(profile: Profile, sm_clock_mhz: int | None) -> float:
    if sm_clock_mhz is None:
        return 1.0
    most = gpu_named(profile.gpu).max_clock_mhz
    now = profile.sm_clock_mhz or most
    if not LEAST_CLOCK * most <= sm_clock_mhz <= now:
        raise ProfileError(
            f"{profile.gpu}: {sm_clock_mhz} MHz is outside {LEAST_CLOCK * most:.0f} to {now}, where"
            " a clock's effect is estimated"
        )
    return sm_clock_mhz / now
