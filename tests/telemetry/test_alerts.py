"""The alert rules before Prometheus's own checker, where it is installed (Debian: prometheus)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from conserve_sglang.telemetry.assets import write_all

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def promtool(*arguments: object) -> str:
    done = subprocess.run(
        [str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_the_rules_are_valid(tmp_path: Path) -> None:
    ((_, _), (rules, _)) = write_all(tmp_path)
    assert "21 rules found" in promtool("check", "rules", rules)


@needs_promtool
def test_the_rules_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    ((_, _), (rules, _)) = write_all(tmp_path)
    rules.rename(tmp_path / "alerts.yaml")
    scenario = tmp_path / "alerts_test.yaml"
    shutil.copy(Path(__file__).with_name("alerts_test.yaml"), scenario)
    assert "SUCCESS" in promtool("test", "rules", scenario)
