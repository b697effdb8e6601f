"""The alert rules before Prometheus's own checker, where it is there: `make promtool`."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from conserve_sglang.telemetry.assets import write_all

FETCHED = Path(__file__).parents[2] / ".cache" / "promtool"
PROMTOOL = shutil.which("promtool") or shutil.which(FETCHED)
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool: make promtool")


def promtool(*arguments: object) -> str:
    done = subprocess.run(
        [str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_the_rules_are_valid(tmp_path: Path) -> None:
    ((_, _), (rules, _)) = write_all(tmp_path)
    (group,) = yaml.safe_load(rules.read_text())["groups"]
    alerts = {rule["alert"] for rule in group["rules"]}
    assert f"{len(alerts)} rules found" in promtool("check", "rules", rules)


@needs_promtool
def test_the_rules_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    ((_, _), (rules, _)) = write_all(tmp_path)
    rules.rename(tmp_path / "alerts.yaml")
    scenario = tmp_path / "alerts_test.yaml"
    shutil.copy(Path(__file__).with_name("alerts_test.yaml"), scenario)
    assert "SUCCESS" in promtool("test", "rules", scenario)
