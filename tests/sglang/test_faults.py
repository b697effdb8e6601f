"""Workers and the router fail under conversations on real SGLang: each turn is answered once.

These are rows of `bench/faults`: all but a scheduler that hangs before the first token.
"""

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from bench.faults.real import SCRIPT, RealSite, real_rows, small_site
from bench.faults.run import Expected, run_row, undisturbed
from bench.faults.site import Site
from bench.faults.talk import Script
from tests.sglang.cluster import Cluster
from tests.sglang.rule import answered_once

pytestmark = pytest.mark.sglang

PLAYED = (
    "decoder frozen (SIGSTOP) before the first token",
    "decoder frozen (SIGSTOP) mid-stream",
    "decoder frozen (SIGSTOP) between turns",
    "decoder scheduler frozen mid-stream",
    "decoder slow (a tenth) before the first token",
    "decoder slow (a tenth) mid-stream",
    "decoder slow (a tenth) between turns",
    "decoder drained before the first token",
    "decoder drained mid-stream",
    "decoder drained between turns",
    "router killed and restarted before the first token",
    "router killed and restarted mid-stream",
    "router killed and restarted between turns",
)
# A killed server takes long to come back, so two come back together. A decoder killed between turns
# is in `test_conversations.py`.
KILLED_TOGETHER = (
    ("decoder killed (-9) before the first token", "p0 killed (-9), started before the transfer"),
    ("decoder killed (-9) mid-stream", "p0 killed (-9), started during the transfer"),
    ("decoder killed (-9) during the transfer", "p0 killed (-9), started after the transfer"),
)
ROWS = {f"{row.victim} {row.name}": row for row in real_rows()}
FULL_DECODERS = "all decoders full all the time"
# By these every turn may be answered where it is.
HARMLESS = {
    *(name for name in PLAYED if name.startswith("decoder slow")),
    "router killed and restarted between turns",
    "p0 killed (-9), started after the transfer",
    FULL_DECODERS,
}
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
    play(site, expected, name)


@pytest.mark.parametrize(("first", "second"), KILLED_TOGETHER)
def test_every_turn_is_answered_once_while_killed_servers_come_back(
    site: RealSite, expected: dict[Script, Expected], first: str, second: str
) -> None:
    asyncio.run(site.until_well())  # an earlier try of this may have left servers that start
    for name in (first, second):
        learn(site, expected, name)
    play(site, expected, first, is_awaited=False)
    play(site, expected, second)


def test_every_turn_is_answered_once_where_all_decoders_are_full(
    cluster: Cluster, tmp_path: Path
) -> None:
    site = small_site(tmp_path, cluster)
    try:
        asyncio.run(site.start())
        play(site, {}, FULL_DECODERS)
    finally:
        site.stop()


def test_each_fault_at_each_moment_is_played() -> None:
    names = {*PLAYED, *(name for pair in KILLED_TOGETHER for name in pair), FULL_DECODERS}
    elsewhere = {
        "decoder killed (-9) between turns",
        "decoder scheduler frozen before the first token",
    }
    assert names | elsewhere == set(ROWS)


def learn(site: Site, expected: dict[Script, Expected], name: str) -> None:
    """Play a row's script undisturbed, once."""
    script = ROWS[name].script or SCRIPT
    if script not in expected:
        expected[script] = asyncio.run(undisturbed(site, script))


def play(
    site: Site, expected: dict[Script, Expected], name: str, *, is_awaited: bool = True
) -> None:
    """Play a row; its turns must keep the rule, and the fault must have met one."""
    learn(site, expected, name)
    row, number = ROWS[name], f"row-{next(_runs)}"
    script = row.script or SCRIPT
    with answered_once():
        played = run_row(site, script, row, expected[script], number, is_awaited=is_awaited)
        counted = asyncio.run(played)
        assert counted.breaches(clients_may_ask_again=row.victim == "router") == []
    assert not counted.was_late, "the answer had begun when the fault struck"
    if name not in HARMLESS:
        counts = (counted.retried, counted.continued, counted.moved, counted.asked_again)
        assert any(counts), "the fault met no turn"
