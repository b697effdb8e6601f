"""A decoder whose own queue is full: what it answers, and what the router makes of that."""

from collections.abc import Iterator

import pytest

from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.dispatch import FailureCause
from tests.fakes.sglang_worker import FakeWorker, Rendezvous
from tests.sglang.cluster import DECODE, Cluster
from tests.sglang.decoder import ids
from tests.sglang.routers import running_router, worker_name
from tests.sglang.talk import TokenTalk
from tests.sglang.test_conversations import named
from tests.sglang.test_fake_contract import TURNS, ask, framing, verdict

pytestmark = pytest.mark.sglang

LOCAL = LocalLimits(max_uncached=2000, min_cached=0).to_routing_key()


@pytest.fixture(scope="module")
def busy(cluster: Cluster) -> Iterator[str]:
    """A decoder that queues nothing. SGLang bounds only what it prefills itself."""
    cluster.add("busy", DECODE, flags=("--max-queued-requests", "0"))
    try:
        yield "busy"
    finally:
        cluster.remove("busy")


@pytest.mark.parametrize("path", TURNS)
@pytest.mark.parametrize("stream", [False, True])
async def test_full_queue_is_told_as_the_fake_tells_it(
    cluster: Cluster, busy: str, path: str, stream: bool
) -> None:
    body = {**TURNS[path], "stream": stream, "routing_key": LOCAL}
    headers = {"x-smg-routing-key": LOCAL}
    async with FakeWorker("decode", Rendezvous()).serve() as fake:
        fake.faults.queue_is_full = True
        real = await ask(cluster.servers[busy].port, path, body, headers)
        told = await ask(fake.port, path, body, headers)
    assert framing(real) == framing(told)
    assert verdict(real) is verdict(told) is FailureCause.DECODER_BUSY
    assert b"The request queue is full." in real.body
    assert b"The request queue is full." in told.body


def test_conversation_leaves_it_for_a_decoder_that_has_room(cluster: Cluster, busy: str) -> None:
    policy = {"name": "conserve"}
    with running_router(cluster, "router-busy", policy, decoders=(busy, "d1")) as router:
        talks = [TokenTalk(router.url, named(f"leaves-{n}")) for n in range(2)]
        opened = [talk.turn(ids(200, n)) for n, talk in enumerate(talks)]
        assert {reply.decoder for reply in opened} == {worker_name(busy), worker_name("d1")}
        number = [reply.decoder for reply in opened].index(worker_name(busy))
        talk, stock = talks[number], TokenTalk(cluster.url("ref"))
        assert opened[number].output == stock.turn(ids(200, number)).output
        moved = talk.turn(ids(30, 12))
        assert (moved.reason, moved.decoder) == ("decoder_busy", worker_name("d1"))
        assert moved.output == stock.turn(ids(30, 12)).output
        stays = talk.turn(ids(30, 13))
        assert (stays.reason, stays.decoder) == ("pinned", worker_name("d1"))
        assert stays.output == stock.turn(ids(30, 13)).output
        loads = router.loads()
        assert loads['conserve_router_failed_attempts_total{cause="decoder_busy"}'] == 1
        (openings,) = (
            value
            for name, value in loads.items()
            if name.startswith("conserve_worker_breaker_openings_total")
            and worker_name(busy) in name
        )
        assert openings == 0
