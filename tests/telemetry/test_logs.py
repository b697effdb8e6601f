"""Logging set-up, in a process of its own since it changes the whole process."""

import json
import subprocess
import sys
from typing import Any

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


JSON_PROGRAM = """
import logging
from conserve_sglang.telemetry.logs import configure, told
configure("info", "json"{access})
ours = logging.getLogger("conserve_sglang.router")
ours.info("worker %s up", "d0", extra=told("worker_up", worker="d0", tokens=5))
ours.warning("two\\nlines")
try:
    1 / 0
except ZeroDivisionError:
    ours.exception("oops")
logging.getLogger("conserve_sglang.access").info("a turn", extra=told("turn", turn=1))
"""


def json_lines(access: str = "") -> list[dict[str, Any]]:
    program = JSON_PROGRAM.format(access=access)
    log = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stderr
    return [json.loads(line) for line in log.splitlines()]


def test_json_has_one_object_a_line_with_the_fields_of_the_event() -> None:
    event, plain, broken = json_lines()
    assert event["event"] == "worker_up"
    assert (event["worker"], event["tokens"]) == ("d0", 5)
    assert event["message"] == "worker d0 up"
    assert event["time"].endswith("Z")
    assert (plain["event"], plain["level"], plain["message"]) == ("log", "warning", "two\nlines")
    assert "ZeroDivisionError" in broken["traceback"]


def test_the_access_log_is_left_out_unless_asked_for() -> None:
    assert [line["event"] for line in json_lines()].count("turn") == 0
    assert [line["event"] for line in json_lines(", with_access_log=True")].count("turn") == 1


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="log format 'xml' is none of text, json"):
        configure("info", "xml")
