"""Workers and the router fail under conversations on real SGLang: each turn is answered once.

These are rows of `bench/faults`, which has all of them.
"""

import asyncio
from collections.abc import Iterator
from itertools import count

import pytest

from bench.faults.real import SCRIPT, RealSite, real_rows
from bench.faults.run import Expected, run_row, undisturbed
from bench.faults.talk import Script
from tests.sglang.cluster import Cluster

pytestmark = pytest.mark.sglang

# Killed servers take a minute to come back, so only the hardest moment of each is played here.
PLAYED = (
    "decoder frozen (SIGSTOP) before the first token",
    "decoder frozen (SIGSTOP) mid-stream",
    "decoder scheduler frozen mid-stream",
    "decoder slow (a tenth) mid-stream",
    "decoder drained mid-stream",
    "router killed and restarted mid-stream",
    "decoder killed (-9) mid-stream",
    "p0 killed (-9), started during the transfer",
)
ROWS = {f"{row.victim} {row.name}": row for row in real_rows()}
_runs = count(1)


@pytest.fixture(scope="module")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSite]:
    """A router over the shared cluster."""
    site = RealSite(tmp_path_factory.mktemp("faults"), cluster)
    try:
        asyncio.run(site.start_router())
        yield site
    finally:
        site.stop()


@pytest.fixture(scope="module")
def expected() -> dict[Script, Expected]:
    """What the answers are when nothing goes wrong, by script."""
    return {}


@pytest.mark.parametrize("name", PLAYED)
def test_every_turn_is_answered_once(
    site: RealSite, expected: dict[Script, Expected], name: str
) -> None:
    row = ROWS[name]
    script = row.script or SCRIPT
    if script not in expected:
        expected[script] = asyncio.run(undisturbed(site, script))
    counted = asyncio.run(run_row(site, script, row, expected[script], f"row-{next(_runs)}"))
    assert counted.problems(clients_may_ask_again=row.victim == "router") == []
    if row.when.name == "mid-stream" and "slow" not in name and "drained" not in name:
        assert counted.continued + counted.asked_again > 0, "the fault met no stream"
