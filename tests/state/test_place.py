"""Where the state file is when the tier map does not say, and when it does."""

import logging
from pathlib import Path

import pytest

from conserve_sglang.core.errors import TierMapError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.state import SqliteStore, default_path, open_store
from conserve_sglang.tiermap import parse_tier_map

TEXT = """
schema_version: 1
model: {path: some/model}
tiers: [{name: m, role: mixed, gpu: cpu, base_port: 1}]
policy: {name: colocated}
router: {port: 30007, %s}
"""


def a_map(folder: Path, router: str = "") -> TierMap:
    return parse_tier_map(TEXT % router, source=str(folder / "fleet.yaml"), folder=folder)


def test_by_default_each_map_and_port_has_a_file_in_the_users_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_path(a_map(tmp_path)) == tmp_path / "conserve-sglang" / "fleet-30007.sqlite"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / "home/.local/state/conserve-sglang/fleet-30007.sqlite"
    assert default_path(a_map(tmp_path)) == expected
    store = open_store(a_map(tmp_path))
    assert isinstance(store, SqliteStore)
    assert store.path == expected
    store.close()


def test_a_path_is_relative_to_the_tier_map_and_may_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for said, meant in (("../s.db", tmp_path / "s.db"), ("~/s.db", tmp_path / "home/s.db")):
        store = open_store(a_map(tmp_path / "maps", f"state: {{path: {said}}}"))
        assert isinstance(store, SqliteStore)
        assert store.path == meant
        store.close()


def test_null_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert open_store(a_map(tmp_path, "state: null")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_default_that_cannot_be_written_is_no_reason_not_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert open_store(a_map(tmp_path)) is None
    assert "conversations are forgotten when the router ends" in caplog.text


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("{path: a, redis: 'redis://h'}", r"router\.state: path and redis .* remove one"),
        ("{redis: 'http://h'}", r"router\.state\.redis"),
        ("{file: a}", r"router\.state\.file: unknown field"),
        ("{path: ''}", r"router\.state\.path"),
        ("{redis_password_env: R}", r"redis_password_env: there is no Redis"),
        ("{redis: 'redis://:pw@h', redis_password_env: R}", r"redis: take the password out of it"),
        ("{redis: 'redis://:hu/sh@h'}", r"redis: not a URL like redis://HOST:6379/0"),
        ("{redis: 'redis://h', redis_password_env: 'a b'}", r"redis_password_env"),
    ],
)
def test_a_wrong_state_is_said_with_its_field(tmp_path: Path, state: str, said: str) -> None:
    with pytest.raises(TierMapError, match=said) as caught:
        a_map(tmp_path, f"state: {state}")
    assert "hu" not in str(caught.value)


def test_routers_of_tests_keep_nothing_in_the_home_of_whoever_runs_them(tmp_path: Path) -> None:
    assert Path.home() not in default_path(a_map(tmp_path)).parents
