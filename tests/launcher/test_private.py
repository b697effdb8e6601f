"""What is told to a child in private: not to be seen from outside, and gone afterwards."""

import asyncio
import json
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from conserve_sglang.launcher.process import Child, Lifeline
from conserve_sglang.launcher.ready import is_healthy, wait_healthy

from .conftest import StandIn


async def test_secret_flag_is_in_a_private_file_until_the_child_is_up(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("W_KEY", "hush-worker")
    monkeypatch.setenv("A_KEY", "hush-admin")
    spec = replace(stand_in("w"), secret_flags={"api-key": "W_KEY"}, withheld=("W_KEY", "A_KEY"))
    lifeline, log = Lifeline(), tmp_path / "w.log"
    child = await Child.start(spec, log=log, lifeline=lifeline, grace_s=1)
    try:
        proc = Path("/proc") / str(child.pid)
        words = (proc / "cmdline").read_text().split("\0")
        file = Path(words[words.index("--config") + 1])
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text()) == {"api-key": "hush-worker"}
        ask = partial(is_healthy, "127.0.0.1", spec.health_port, timeout_s=5)
        assert await wait_healthy(ask, timeout_s=20, interval_s=0.05)
        seen = "".join(words) + (proc / "environ").read_text() + log.read_text()
        assert "hush" not in seen
        assert '--api-key "$W_KEY"' in log.read_text()
        child.has_started()
        assert not file.exists()
    finally:
        await child.stop(grace_s=1)
        lifeline.cut()


async def test_private_file_goes_with_a_child_that_never_comes_up(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("W_KEY", "hush")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spec = replace(stand_in("w", "--fail", "no"), secret_flags={"api-key": "W_KEY"})
    lifeline = Lifeline()
    child = await Child.start(spec, log=tmp_path / "w.log", lifeline=lifeline, grace_s=1)
    assert len(list(tmp_path.glob("conserve-*"))) == 1
    assert await asyncio.wait_for(child.wait(), 20) == 3
    lifeline.cut()
    assert list(tmp_path.glob("conserve-*")) == []
