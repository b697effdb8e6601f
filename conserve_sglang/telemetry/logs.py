"""Logging set-up. Called by processes of ours when they start, never on import.

One line an event, as text or as JSON: what would end or disturb a line is escaped, and only
tracebacks have lines of their own, indented. An event that programs look for is logged with
`extra=told(name, field=value...)`; names and fields stay what they are. No line has prompt text,
an API key or a header of a client in it.
"""

import json
import logging
import re
import sys
import time
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
ACCESS_LOGGER = "conserve_sglang.access"
_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_PLAIN = re.compile(r"[!#-<>-~]+")  # printable, without space, quote and equals sign
# Control characters, ends of lines as Unicode has them, and what changes the direction of writing.
_DISTURBING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def told(event: str, **fields: Any) -> dict[str, Any]:
    """What a program reads of a log line: the event's name, and its fields."""
    return {"event": event, "fields": fields}


def as_text(fields: dict[str, Any]) -> str:
    """Fields as `name=value`, those left out that are None; unusual values as JSON strings."""
    return " ".join(
        f"{name}={_value(value)}" for name, value in fields.items() if value is not None
    )


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class TextFormatter(logging.Formatter):
    """Time, level, logger and message in one line, a traceback in indented ones below it."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line."""
        return _DISTURBING.sub(_escaped, super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The lines below it."""
        lines = super().formatException(ei).splitlines()
        return "\n".join("    " + _DISTURBING.sub(_escaped, line) for line in lines)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


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

    The access log, a line for each request answered, is left out unless it is asked for.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    if log_format not in FORMATS:
        raise ValueError(f"log format {log_format!r} is none of {', '.join(FORMATS)}")
    access = "DEBUG" if level == "debug" else "INFO"
    access = access if with_access_log else "WARNING"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("conserve_sglang").setLevel(level.upper())
    logging.getLogger(ACCESS_LOGGER).setLevel(access)
