"""The bench of kept conversations measures what it says it does."""

import shutil
from pathlib import Path

import pytest

from bench.state_cost import measure_redis, measure_restore


async def test_all_of_a_file_is_restored_with_its_pins(tmp_path: Path) -> None:
    found = await measure_restore(tmp_path / "restore", 1500)
    assert (found["num_conversations"], found["num_pinned"]) == (1500, 1500)
    assert found["read_s"] > 0
    assert found["read_and_restore_s"] > 0


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
async def test_a_turn_of_another_replicas_conversation_waits_for_redis(tmp_path: Path) -> None:
    found = (await measure_redis(tmp_path, 10))["latency_us"]
    assert set(found) == {"of_nobody", "own", "of_the_other", "alone_first", "alone_tail"}
    assert found["own"]["p50"] < found["of_the_other"]["min"]
