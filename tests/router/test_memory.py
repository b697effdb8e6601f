"""What a router still knows after its end, however that came."""

import asyncio
import logging
import re
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.core.tier import StateSettings
from conserve_sglang.router import memory
from conserve_sglang.router.service import RouterService
from conserve_sglang.state import SavedConversation, SavedResponse, SqliteStore, StateStore
from tests.fakes.router_cluster import SETTINGS, Cluster, a_tier_map
from tests.fakes.router_process import RouterProcess, a_router_process
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

SAID = ("a long first message", "the answer", "and the next")
KEEPING = StateSettings(keep_responses=True)
MODES = {"p0": "prefill", "d0": "decode", "d1": "decode"}


@asynccontextmanager
async def fakes() -> AsyncIterator[dict[str, FakeWorker]]:
    rendezvous = Rendezvous()
    workers = {name: FakeWorker(mode, rendezvous) for name, mode in MODES.items()}
    for worker in workers.values():
        await worker.start()
    try:
        yield workers
    finally:
        for worker in workers.values():
            await worker.stop()


@asynccontextmanager
async def a_life(
    workers: dict[str, FakeWorker], store: StateStore | Path, **settings: Any
) -> AsyncIterator[Cluster]:
    """One life of a router in the test's own loop, from start to orderly stop."""
    if isinstance(store, Path):
        store = SqliteStore(store)
    tier_map = a_tier_map(workers, "conserve", replace(SETTINGS, **settings))
    service = RouterService(tier_map, store=store)
    await service.start()
    cluster = Cluster(service, workers)
    try:
        yield cluster
    finally:
        await cluster.hang_up()
        await service.stop()


async def restart(worker: FakeWorker) -> None:
    """A worker's process ends and another takes its place."""
    port = worker.port
    await worker.stop()
    worker.resident.clear()
    await worker.start(port)


def cached(answer: Any) -> int:
    tokens: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


async def flushed(process: RouterProcess) -> None:
    """Longer than the router may keep to itself what it knows."""
    await asyncio.sleep(3 * memory.FLUSH_INTERVAL_S)


async def test_a_killed_router_goes_on_with_its_conversations(tmp_path: Path) -> None:
    async with fakes() as workers:
        state = {"path": "state.sqlite"}
        async with a_router_process(tmp_path, workers, state=state) as router:
            first = await router.chat(SAID[0])
            decoder = first.headers["x-conserve-decoder"]
            assert first.headers["x-conserve-reason"] == "first_turn"
            unnamed = await router.chat("no name", name=None)
            await flushed(router)
            assert await router.end(signal.SIGKILL) == -signal.SIGKILL
            await router.start()
            num_prefills = len(workers["p0"].turns)
            second = await router.chat(*SAID)
            again = await router.chat("no name", "the answer", "go on", name=None)
            about = (await router.get("/v1/conversations/c")).json()
        assert second.headers["x-conserve-decoder"] == decoder
        assert second.headers["x-conserve-reason"] == "pinned"
        assert cached(second) == len(SAID[0] + SAID[1])
        assert again.headers["x-conversation-id"] == unnamed.headers["x-conversation-id"]
        assert again.headers["x-conserve-reason"] == "pinned"
        assert len(workers["p0"].turns) == num_prefills == 2
        assert (about["turns"], about["kv_transfers"], about["decoder"]) == (2, 1, decoder)
        assert [worker.num_flushes for worker in workers.values()] == [0, 0, 0]
        assert [worker.closed_sessions for worker in workers.values()] == [[], [], []]
        assert (tmp_path / "state.sqlite").exists()
        assert "restored 2 conversations, 2 with their pin" in router.log.read_text()


async def test_an_orderly_stop_forgets_nothing_not_even_the_last_turn(tmp_path: Path) -> None:
    async with fakes() as workers:
        async with a_life(workers, tmp_path / "s") as cluster:
            await cluster.until_met()
            await cluster.chat(SAID[0])
        async with a_life(workers, tmp_path / "s") as cluster:
            assert (await cluster.chat(*SAID)).headers["x-conserve-reason"] == "pinned"


async def test_a_pin_on_a_restarted_worker_is_dropped_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fakes() as workers:
        async with a_life(workers, tmp_path / "s") as cluster:
            await cluster.until_met()
            decoder = (await cluster.chat(SAID[0])).headers["x-conserve-decoder"]
        await restart(workers[decoder])
        with caplog.at_level(logging.INFO):
            async with a_life(workers, tmp_path / "s") as cluster:
                answer = await cluster.chat(*SAID)
                assert answer.headers["x-conserve-reason"] == "decoder_lost"
                assert cluster.service.fleet.num_decoders_up == 2
        assert "restored 1 conversations, 0 with their pin" in caplog.text
        assert "1 of restarted workers" in caplog.text
        async with a_life(workers, tmp_path / "s") as cluster:
            assert (await cluster.chat(*SAID)).headers["x-conserve-reason"] == "pinned"


async def test_a_worker_that_left_the_tier_map_takes_its_pins_with_it(tmp_path: Path) -> None:
    async with fakes() as workers:
        async with a_life(workers, tmp_path / "s") as cluster:
            await cluster.until_met()
            decoder = (await cluster.chat(SAID[0])).headers["x-conserve-decoder"]
        rest = {name: worker for name, worker in workers.items() if name != decoder}
        async with a_life(rest, tmp_path / "s") as cluster:
            answer = await cluster.chat(*SAID)
            assert answer.headers["x-conserve-reason"] == "decoder_lost"


async def test_a_conversation_past_its_time_is_forgotten_and_released(tmp_path: Path) -> None:
    async with fakes() as workers:
        async with a_life(workers, tmp_path / "s") as cluster:
            await cluster.until_met()
            decoder = (await cluster.chat(SAID[0])).headers["x-conserve-decoder"]
        await asyncio.sleep(0.05)
        async with a_life(workers, tmp_path / "s", conversation_ttl_s=0.04) as cluster:
            await cluster.until(lambda: len(workers[decoder].closed_sessions) == 1)
            assert cluster.service.brain.dispatcher.num_conversations == 0
        store = SqliteStore(tmp_path / "s")
        assert store.load() == []
        store.close()


async def test_an_ended_conversation_is_not_restored(tmp_path: Path) -> None:
    async with fakes() as workers:
        async with a_life(workers, tmp_path / "s") as cluster:
            await cluster.until_met()
            await cluster.chat(SAID[0])
            assert (await cluster.request("DELETE", "/v1/conversations/c")).status == 200
        async with a_life(workers, tmp_path / "s") as cluster:
            assert (await cluster.request("GET", "/v1/conversations/c")).status == 404


async def test_a_worker_that_comes_late_gets_its_conversations_back(tmp_path: Path) -> None:
    async with fakes() as workers:
        async with a_life(workers, tmp_path / "s") as cluster:
            await cluster.until_met()
            decoder = (await cluster.chat(SAID[0])).headers["x-conserve-decoder"]
        worker = workers[decoder]
        incarnation, port = worker.incarnation, worker.port
        await worker.stop()  # out of reach, not ended
        async with a_life(workers, tmp_path / "s") as cluster:
            await asyncio.sleep(0.1)
            await worker.start(port)
            worker.incarnation = incarnation
            await cluster.until_met()
            assert (await cluster.chat(*SAID)).headers["x-conserve-reason"] == "pinned"
            assert worker.num_flushes == 0


async def test_clients_wait_while_workers_that_hold_pins_have_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "FIRST_MEETING_S", 0.3)
    async with fakes() as workers:
        async with a_life(workers, tmp_path / "s") as cluster:
            await cluster.until_met()
            decoder = (await cluster.chat(SAID[0])).headers["x-conserve-decoder"]
        port = workers[decoder].port
        await workers[decoder].stop()
        callers: list[asyncio.StreamWriter] = []
        silent = await asyncio.start_server(lambda _, caller: callers.append(caller), port=port)
        began = time.monotonic()
        async with a_life(workers, tmp_path / "s") as cluster:
            waited = time.monotonic() - began
            answer = await cluster.chat(*SAID)
            assert answer.headers["x-conserve-reason"] == "decoder_lost"
        silent.close()
        for caller in callers:
            caller.transport.abort()
        assert 0.3 <= waited < 3.0


class Sick:
    """A store that cannot write for a while."""

    def __init__(self, path: Path) -> None:
        self._store = SqliteStore(path)
        self.num_failures = 0
        self.is_sick = True

    def secret(self) -> bytes:
        return self._store.secret()

    def load(self) -> list[SavedConversation]:
        return self._store.load()

    def load_responses(self) -> list[SavedResponse]:
        return self._store.load_responses()

    def forget_responses(self) -> None:
        self._store.forget_responses()

    def write(
        self,
        changed: Sequence[SavedConversation],
        gone: Sequence[str],
        responses: Sequence[SavedResponse] = (),
        forgotten: Sequence[tuple[str, str]] = (),
    ) -> None:
        if self.is_sick:
            self.num_failures += 1
            raise OSError("no space left on device")
        self._store.write(changed, gone, responses, forgotten)

    def close(self) -> None:
        self._store.close()


async def test_a_store_that_cannot_write_is_said_and_written_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "FLUSH_INTERVAL_S", 0.01)
    monkeypatch.setattr(memory, "RETRY_S", 0.02)
    async with fakes() as workers:
        store = Sick(tmp_path / "s")
        async with a_life(workers, store, state=KEEPING) as cluster:
            await cluster.until_met()
            assert (await cluster.chat(SAID[0])).status == 200
            response = await cluster.post("/v1/responses", {"input": "hello"})
            await cluster.until(lambda: store.num_failures > 2)
            health = (await cluster.request("GET", "/health")).json()
            assert health["status"] == "degraded"
            assert "no space left on device" in health["state"]
            control_port = cluster.service.control_port
            metrics = (await cluster.request("GET", "/metrics", control_port)).body.decode()
            assert "conserve_router_state_degraded 1.0" in metrics
            (failures,) = re.findall(r"\nconserve_router_state_failures_total (\S+)", metrics)
            assert float(failures) > 2
            store.is_sick = False
            await cluster.until(lambda: bool(store.load()))
            kept = cluster.service.memory
            await cluster.until(lambda: kept is not None and kept.problem is None)
            assert "state" not in (await cluster.request("GET", "/health")).json()
            (kept_response,) = store.load_responses()
            assert kept_response.response_id == response.json()["id"]


async def test_a_killed_router_goes_on_from_responses_where_told_to(tmp_path: Path) -> None:
    state = {"path": "state.sqlite", "keep_responses": True}
    async with (
        fakes() as workers,
        a_router_process(tmp_path, workers, state=state, processes=2) as router,
    ):
        said = [await router.post("/v1/responses", {"input": f"hello {n}"}) for n in range(2)]
        previous, deleted = (answer.json()["id"] for answer in said)
        assert (await router.get(f"/v1/responses/{deleted}", "DELETE")).status == 200
        await flushed(router)
        assert await router.end(signal.SIGKILL) == -signal.SIGKILL
        await router.start()
        for _ in range(3):
            asked = {"input": "more", "previous_response_id": previous}
            answer = await router.post("/v1/responses", asked)
            assert answer.headers["x-conserve-reason"] == "pinned"
            previous = answer.json()["id"]
        (decoder,) = (workers[name] for name in ("d0", "d1") if len(workers[name].turns) > 1)
        contents = [message["content"] for message in decoder.turns[-1].body["messages"]]
        assert contents == ["hello 0", "the answer", *["more", "the answer"] * 2, "more"]
        asked = {"input": "more", "previous_response_id": deleted}
        assert (await router.post("/v1/responses", asked)).status == 400


async def test_what_was_said_is_not_kept_unless_told_so(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with fakes() as workers:
        async with a_life(workers, path, state=KEEPING) as cluster:
            await cluster.until_met()
            await cluster.post("/v1/responses", {"input": "hello"})
        store = SqliteStore(path)
        assert len(store.load_responses()) == 1
        async with a_life(workers, store) as cluster:
            await cluster.until_met()
            await cluster.post("/v1/responses", {"input": "hello"})
        store = SqliteStore(path)
        assert store.load_responses() == []
        assert len(store.load()) == 2
        store.close()


async def test_thousands_of_conversations_are_restored_with_what_they_hold(
    tmp_path: Path,
) -> None:
    async with fakes() as workers:
        store = SqliteStore(tmp_path / "s")
        workers["d0"].capacity_tokens = 1_000_000
        now = time.time()
        many = [
            SavedConversation(
                f"conv-{n}", "default", b"%d" % n, "d0", workers["d0"].incarnation,
                100, 90, 2, 1, now - n % 60, b"%016d" % n,
            )
            for n in range(5000)
        ]  # fmt: skip
        store.write(many, [])
        async with a_life(workers, store) as cluster:
            brain = cluster.service.brain
            load = brain.dispatcher.worker_load(cluster.service.fleet.workers()[1].worker_id)
            assert load is not None
            assert (load.resident_tokens, load.num_conversations) == (500_000, 5000)
            assert len(brain.conversations.history) == 5000
            view = brain.dispatcher.conversation(ConversationId("conv-7"))
            assert view is not None
            assert (view.prompt_tokens, view.num_turns) == (90, 2)


async def test_no_state_is_kept_when_told_so(tmp_path: Path) -> None:
    async with fakes() as workers:
        router = RouterProcess(tmp_path, workers, state={"path": "state.sqlite"})
        await router.start("--no-state")
        await router.chat(SAID[0])
        assert await router.end() == 0
        assert not (tmp_path / "state.sqlite").exists()
