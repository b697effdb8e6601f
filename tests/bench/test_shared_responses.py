"""The bench of shared responses asks for what is there and for what is not."""

import shutil
from pathlib import Path

import pytest

from bench.shared_responses import measure


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
async def test_responses_of_the_other_replica_are_found(tmp_path: Path) -> None:
    found = (await measure(tmp_path, 3))["wait_us"]
    kinds = {
        f"{kind}{of}"
        for kind in ("at_once", "own", "copied", "later")
        for of in ("", "_100k", "_100")
    }
    assert set(found) == kinds | {"alone", "unknown"}
    assert found["alone"]["p50"] < found["own"]["min"]
