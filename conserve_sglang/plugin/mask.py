"""Keeps the server's API keys out of its log: SGLang writes all its arguments there at start."""

import logging
import re

_WRITERS = ("sglang.srt.entrypoints.engine", "sglang.srt.entrypoints.http_server")
_KEY = re.compile(r"(api_key'?(?:=|: ))('[^']*'|\"[^\"]*\")")


def mask_api_keys(record: logging.LogRecord) -> bool:
    """A logging filter that lets everything through, less the values of API keys."""
    if isinstance(record.msg, str) and "api_key" in record.msg:
        record.msg = _KEY.sub(r"\1'***'", record.msg)
    return True


def mask_logs() -> None:
    """Mask what this process will log."""
    for name in _WRITERS:
        logging.getLogger(name).addFilter(mask_api_keys)
