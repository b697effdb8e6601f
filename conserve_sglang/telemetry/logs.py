"""Logging set-up. Called by processes of ours when they start, never on import.

One line an event, as text or as JSON. An event that programs look for is logged with
`extra=told(name, field=value...)`; names and fields stay what they are. No line has prompt text,
an API key or a header of a client in it.
"""

import json
import logging
import sys
import time
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
ACCESS_LOGGER = "conserve_sglang.access"
_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def told(event: str, **fields: Any) -> dict[str, Any]:
    """What a program reads of a log line: the event's name, and its fields."""
    return {"event": event, "fields": fields}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, message, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(
    level: str = "info", log_format: str = "text", *, with_access_log: bool = False
) -> None:
    """Send this package's log to stderr from `level` upwards; other packages' from warning.

    The access log, one line for each turn, is left out unless it is asked for.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    if log_format not in FORMATS:
        raise ValueError(f"log format {log_format!r} is none of {', '.join(FORMATS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("conserve_sglang").setLevel(level.upper())
    logging.getLogger(ACCESS_LOGGER).setLevel(logging.INFO if with_access_log else logging.WARNING)
