"""The option --slo: latency targets by name."""

from collections.abc import Sequence
from math import isfinite

from conserve_sglang.core.errors import ConfigError

NAMES = ("ttfet", "tbt", "e2e")


def parse_slo(given: Sequence[str]) -> dict[str, float]:
    """Seconds by name, of options such as `ttfet=8,tbt=0.1`. Raises ConfigError."""
    found: dict[str, float] = {}
    for text in ",".join(given).split(","):
        if not text:
            continue
        name, _, value = text.partition("=")
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if name not in NAMES or not (seconds > 0 and isfinite(seconds)):
            raise ConfigError(f"--slo {text}: write ttfet=SECONDS, tbt=SECONDS or e2e=SECONDS")
        if found.get(name, seconds) != seconds:
            raise ConfigError(f"--slo: {name} is given twice; leave one out")
        found[name] = seconds
    return found
