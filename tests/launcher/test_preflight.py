import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.launcher import preflight
from conserve_sglang.launcher.launch import LaunchOptions, plan_launch
from conserve_sglang.tiermap import parse_tier_map


def test_a_missing_sglang_is_installed_without_its_cuda_requirements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (line,) = preflight._sglang()
    assert "pip install --no-deps sglang==0.5.23" in line
    assert "make setup" in line


def test_a_launch_looks_for_what_its_router_needs_before_models_are_loaded(tmp_path: Path) -> None:
    text = """
schema_version: 1
model: {path: some/model}
tiers: [{name: m, role: mixed, gpu: cpu, base_port: 1}]
policy: {name: colocated}
router: {auth: {keys_file: no.yaml}, state: {redis: "redis://h", redis_password_env: NO_SUCH}}
"""
    tier_map = parse_tier_map(text, source="map.yaml", folder=tmp_path)

    def missing(options: LaunchOptions) -> list[str]:
        found = preflight._outside(plan_launch(tier_map, options), tier_map)
        return [line.split(": ")[0] for line in found]

    options = LaunchOptions(log_dir=tmp_path)
    state, keys = "router.state.redis_password_env", "router.auth.keys_file"
    assert missing(options) == [state, keys]
    assert missing(replace(options, with_state=False)) == [keys]
    assert missing(replace(options, with_router=False)) == []
