"""The --log-level option's effect."""

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.telemetry.logs import configure


def configure_logs(level: str) -> None:
    """Set logging up; ConfigError for a level there is not."""
    try:
        configure(level)
    except ValueError as error:
        raise ConfigError(f"--log-level: {error}") from error
