"""Logging set-up, in a process of its own since it changes the whole process."""

import subprocess
import sys

import pytest

from conserve_sglang.telemetry.logs import configure

PROGRAM = """
import logging
from conserve_sglang.telemetry.logs import configure
{set_up}
ours, other = logging.getLogger("conserve_sglang.router"), logging.getLogger("uvicorn")
ours.info("ours info")
ours.debug("ours debug")
other.info("other info")
other.warning("other warning")
"""


def log_of(set_up: str) -> str:
    program = PROGRAM.format(set_up=set_up)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stderr


def test_ours_from_the_level_up_and_others_from_warning() -> None:
    log = log_of("configure('info')")
    assert "INFO    conserve_sglang.router: ours info" in log
    assert "other warning" in log
    assert "ours debug" not in log
    assert "other info" not in log


def test_set_up_twice_still_logs_once() -> None:
    assert log_of("configure('debug'); configure('info')").count("ours info") == 1


def test_nothing_is_logged_by_us_until_it_is_set_up() -> None:
    assert "ours" not in log_of("import conserve_sglang")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="log level 'loud' is none of debug, info"):
        configure("loud")
