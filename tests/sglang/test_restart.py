"""A router is killed and started again: its conversations go on, on real SGLang."""

import signal
import time
from pathlib import Path

import pytest

from tests.sglang.cluster import Cluster
from tests.sglang.decoder import ids
from tests.sglang.routers import running_router
from tests.sglang.rule import answered_once
from tests.sglang.talk import TokenTalk
from tests.sglang.test_conversations import CONSERVE, assert_covers, named, rooms

pytestmark = pytest.mark.sglang

WRITTEN_BEHIND_S = 1.0  # the router keeps to itself what it knows for 0.2 s at most


def test_conversations_go_on_after_the_router_was_killed(cluster: Cluster, tmp_path: Path) -> None:
    state = {"path": str(tmp_path / "state.sqlite")}
    killed = signal.SIGKILL
    with running_router(cluster, "killed", CONSERVE, ends_by=killed, state=state) as router:
        talks = [TokenTalk(router.url, named("killed")), TokenTalk(router.url)]
        stock = [TokenTalk(cluster.url("ref")) for _ in talks]
        opening = [ids(1200 + number, 600 + number) for number in range(2)]
        before = [talk.turn(said) for talk, said in zip(talks, opening, strict=True)]
        for talk, said in zip(stock, opening, strict=True):
            talk.turn(said)
        time.sleep(WRITTEN_BEHIND_S)
    transfers = rooms(cluster)
    with running_router(cluster, "restarted", CONSERVE, state=state) as router:
        for number, (talk, last) in enumerate(zip(talks, before, strict=True)):
            talk.url = router.url
            append = ids(67, 610 + number)
            wanted = stock[number].turn(append).output
            with answered_once():
                reply = talk.turn(append)
                assert reply.output == wanted
            assert (reply.reason, reply.prefiller) == ("pinned", None)
            assert reply.decoder == last.decoder
            assert reply.headers["x-conversation-id"] == last.headers["x-conversation-id"]
            assert_covers(reply, last)
    assert rooms(cluster) == transfers
