"""No test writes into the home of whoever runs it, or leaves its log settings to the next.

A failure is shown when it happens, not only at the end, which a run cut short does not reach and
which says nothing of a test that passed when it was run again.
"""

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


class _ShownAtOnce:
    """Writes what failed below the line of dots, while the run goes on."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Show one failed test with its traceback and what was captured, run again or not."""
        if report.outcome in ("failed", "rerun"):
            self._terminal.write_line("")
            self._terminal.write_sep("_", report.nodeid)
            report.toterminal(self._terminal._tw)
            for title, text in report.sections:
                self._terminal.write_line(f"--- {title}\n{text}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        config.pluginmanager.register(_ShownAtOnce(terminal))
