"""The p95 that the power controller is told: of what came after its last move. Pure."""

from collections.abc import Iterable

from conserve_sglang.core.stats import percentile
from conserve_sglang.power.observation import Latency


def recent_latency(
    samples: Iterable[tuple[float, float, float]],
    now_s: float,
    *,
    moved_at_s: float,
    window_s: float,
) -> Latency | None:
    """Of samples (began, ended, seconds) those that ended in the last window, if any.

    Only what began after the last move: a turn, or for TTFET a conversation, that was on its way
    then was served in part as before. So a conversation is judged once one of its length had calm.
    """
    since_s = max(now_s - window_s, moved_at_s)
    values = sorted(
        seconds
        for began_at_s, ended_at_s, seconds in samples
        if ended_at_s >= since_s and began_at_s >= moved_at_s
    )
    if not values:
        return None
    return Latency(p95_s=percentile(values, 95), num_samples=len(values), since_s=since_s)
