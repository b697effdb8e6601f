"""No test writes into the home of whoever runs it, or leaves its log settings to the next."""

import logging
import os
import tempfile
from collections.abc import Iterator

import pytest

from conserve_sglang.telemetry.logs import ACCESS_LOGGER


@pytest.fixture(scope="session", autouse=True)
def _state_folder() -> Iterator[None]:
    """Routers that are started without another word keep their state in here."""
    before = os.environ.get("XDG_STATE_HOME")
    with tempfile.TemporaryDirectory(prefix="state-") as folder:
        os.environ["XDG_STATE_HOME"] = folder
        yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(autouse=True)
def _log_settings() -> Iterator[None]:
    """Commands that run within a test configure the logs of the whole process."""
    loggers = [logging.getLogger(name) for name in (None, "conserve_sglang", ACCESS_LOGGER)]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
