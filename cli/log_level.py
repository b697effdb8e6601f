"""What the --log-level and --log-format options do."""

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.telemetry.logs import LEVELS, configure


def configure_logs(level: str, log_format: str = "text") -> None:
    """Set logging up; ConfigError for a level or a format there is not."""
    try:
        configure(level, log_format)
    except ValueError as error:
        option = "--log-format" if level in LEVELS else "--log-level"
        raise ConfigError(f"{option}: {error}") from error
