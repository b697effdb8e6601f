"""What was extrapolated beyond the points of profiles, as text and as JSON."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from conserve_sglang.sim import Beyond


def beyond_lines(runs: Iterable[Sequence[Beyond]]) -> Iterator[str]:
    """A line for each quantity of each tier: the farthest of all runs."""
    farthest: dict[tuple[str, str, str], Beyond] = {}
    for run in runs:
        for one in run:
            key = (one.tier, one.profile, one.what)
            known = farthest.get(key)
            if known is None or one.reached > known.reached:
                farthest[key] = one
    yield from (f"beyond the profile: {one.text}" for one in farthest.values())


def as_beyond(one: Beyond) -> dict[str, Any]:
    """Plain JSON values."""
    return {
        "tier": one.tier,
        "profile": one.profile,
        "what": one.what,
        "reached": one.reached,
        "points_end_at": one.known,
        "times_as_far": one.factor,
        "share": one.share,
        "of": one.events,
    }
