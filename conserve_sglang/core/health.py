"""When a worker counts as failing, frozen or lost: bounds, with their defaults."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """The circuit breaker of each worker.

    It opens after `consecutive_failures` turns in a row, or when `failure_ratio` of at least
    `min_turns` turns of the last `window_s` failed. It stays open for `cooldown_s`, each time
    twice as long up to `max_cooldown_s`; then `trial_turns` turns must be answered.
    """

    consecutive_failures: int = 5
    failure_ratio: float = 0.5
    min_turns: int = 10
    window_s: float = 30.0
    cooldown_s: float = 2.0
    max_cooldown_s: float = 60.0
    trial_turns: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """How workers are watched.

    Every worker is asked each `probe_interval_s`; `max_missed_probes` in a row without an answer
    in `probe_timeout_s` and it is lost. A worker from which no byte has come for `stall_s` while
    turns wait is asked once more, on a new connection; no sign of life for
    `stall_probe_timeout_s` from then on and it is lost. A busy server on a busy CPU was seen to
    take 10 s for an answer, so the two together should be well above that.

    A scheduler may hang behind an HTTP server that answers. Where turns have waited for `hang_s`
    without a byte, the worker is asked for its scheduler's health, twice; no good answer in
    `hang_probe_timeout_s` each, and no byte meanwhile, and it is lost.
    """

    probe_interval_s: float = 1.0
    probe_timeout_s: float = 10.0
    max_missed_probes: int = 3
    stall_s: float = 5.0
    stall_probe_timeout_s: float = 10.0
    hang_s: float = 30.0
    hang_probe_timeout_s: float = 25.0
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
