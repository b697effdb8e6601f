"""Neither prompts, answers, names nor keys get into logs, metrics, traces or others' answers."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.router.identity import History
from conserve_sglang.router.traces import TurnTraces
from conserve_sglang.telemetry.logs import JsonFormatter
from conserve_sglang.telemetry.tracing import tracing_to
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.patching import replaces_a_part
from tests.fakes.router_cluster import Client, Cluster, a_cluster
from tests.fakes.router_process import RouterProcess
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

PROMPT, ANSWER, NAME = "marked-prompt", "marked-answer", "marked-name"
WORKER_KEY, ADMIN_KEY = "marked-worker-key", "marked-admin-key"
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


def a_body(path: str, said: str) -> dict[str, Any]:
    """What is sent to any of the APIs, every text in it marked."""
    if path == RESPONSES:
        return {"input": said, "instructions": PROMPT, "user": NAME, "model": "tiny"}
    body = {"messages": [{"role": "user", "content": said}], "prompt": said, "text": said}
    if path != MESSAGES:
        return body
    session = {"user_id": f"user_1_account__session_{NAME}"}
    return {**body, "system": PROMPT, "model": "tiny", "max_tokens": 5, "metadata": session}


class Scene:
    """A cluster with every key set, whose workers quote what they are asked in their errors."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self.cluster = cluster
        self.key = key
        self.num_turns = 0
        self.spans = InMemorySpanExporter()
        meter = cluster.service.door.executor.meter
        meter.listeners = (
            *meter.listeners,
            TurnTraces(tracing_to(SimpleSpanProcessor(self.spans), 1.0), meter.clock),
        )

    def headers(self, **more: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}", **more}

    async def turn(self, path: str = CHAT, name: str = NAME, **fields: Any) -> int:
        self.num_turns += 1
        said = f"{PROMPT} {self.num_turns} conserve-refused reason={PROMPT} cached=1 uncached=1"
        body = a_body(path, said)
        headers = self.headers(**({"x-conversation-id": name} if name else {}))
        answer = await self.cluster.post(path, {**body, **fields}, headers)
        return answer.status

    async def told_to_others(self) -> str:
        """What another client, and an operator, are told from now on."""
        control = self.cluster.service.control_port
        key = {"authorization": f"Bearer {ADMIN_KEY}"}
        told = [
            await self.cluster.request("GET", "/v1/models", headers=self.headers()),
            await self.cluster.request("GET", "/v1/conversations/no", headers=self.headers()),
            await self.cluster.request("GET", "/metrics", control, key),
            await self.cluster.request("GET", "/health", control, key),
            await self.cluster.request("GET", "/admin/workers", control, key),
            await self.cluster.post(CHAT, b"{", self.headers()),
        ]
        return "\n".join(answer.body.decode() for answer in told)


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setenv("W_KEY", WORKER_KEY)
    monkeypatch.setenv("A_KEY", ADMIN_KEY)
    key = new_key(tmp_path / "keys.yaml", "a")
    async with a_cluster(
        worker_api_key=WORKER_KEY,
        worker_api_key_env="W_KEY",
        admin_key_env="A_KEY",
        auth=AuthSettings(keys_file=str(tmp_path / "keys.yaml")),
        queue_timeout_s=0.3,
    ) as cluster:
        for worker in cluster.workers.values():
            worker.answer = ANSWER
            worker.error_text = f"cannot serve {PROMPT} with {WORKER_KEY}"
        yield Scene(cluster, key)


async def good(scene: Scene) -> None:
    for path in (CHAT, "/v1/completions", "/generate"):
        for is_stream in (False, True):
            assert await scene.turn(path, stream=is_stream) == 200
            assert await scene.turn(path, name="", stream=is_stream) == 200


async def failing(scene: Scene) -> None:
    for name in ("p0", "d0", "d1"):
        for status in (500, 503, 400, 429):
            scene.cluster[name].faults.statuses += [status]
            await scene.turn(stream=status == 500)
    for name in ("d0", "d1"):
        scene.cluster[name].faults.statuses = [500] * 9
    assert await scene.turn(name="other") == 502


async def broken_off(scene: Scene) -> None:
    for name in ("d0", "d1"):
        scene.cluster[name].faults.cut_after_events = 1
    await scene.turn(stream=True)


async def refused(scene: Scene) -> None:
    cluster = scene.cluster
    assert await scene.turn(model=PROMPT) == 404
    assert await scene.turn(stream=PROMPT) == 400
    assert (await cluster.post(CHAT, f'{{"{PROMPT}'.encode(), scene.headers())).status == 400
    assert (await cluster.post(CHAT, {"messages": []}, {"x-api-key": PROMPT})).status == 401
    assert (await cluster.request("GET", f"/{NAME}", headers=scene.headers())).status == 404
    path = f"/v1/conversations/{NAME}"
    assert (await cluster.request("PUT", path, headers=scene.headers())).status == 405
    await cluster.request("POST", "/admin/workers/d0/lost", cluster.service.control_port)


async def by_other_apis(scene: Scene) -> None:
    for is_stream in (False, True):
        for path in (MESSAGES, RESPONSES):
            assert await scene.turn(path, stream=is_stream) == 200
            assert await scene.turn(path, name="", stream=is_stream) == 200
    cluster, headers = scene.cluster, scene.headers()
    first = (await cluster.post(RESPONSES, {"model": "tiny", "input": PROMPT}, headers)).json()
    assert await scene.turn(RESPONSES, name="", previous_response_id=first["id"]) == 200
    gone = await cluster.request("DELETE", f"{RESPONSES}/{first['id']}", headers=headers)
    assert gone.status == 200
    counted = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}]}
    assert (await cluster.post(f"{MESSAGES}/count_tokens", counted, headers)).status == 200


async def failing_by_other_apis(scene: Scene) -> None:
    for path in (MESSAGES, RESPONSES):
        for name in ("p0", "d0", "d1"):
            for status in (500, 503, 400, 429):
                scene.cluster[name].faults.statuses += [status]
                await scene.turn(path, stream=status == 500)
        for name in ("d0", "d1"):
            scene.cluster[name].faults.statuses = []
            scene.cluster[name].faults.cut_after_events = 1
        await scene.turn(path, stream=True)
        for name in ("d0", "d1"):
            scene.cluster[name].faults.cut_after_events = None
        assert await scene.turn(path, tools=[{"type": PROMPT, "name": NAME}]) == 400
        broken = await scene.cluster.post(path, f'{{"{PROMPT}'.encode(), scene.headers())
        assert broken.status == 400
    assert await scene.turn(RESPONSES, previous_response_id=NAME) == 400


async def aborted(scene: Scene) -> None:
    for name in ("p0", "d0", "d1"):
        scene.cluster[name].faults.delay_s = 0.2
    client = await scene.cluster.connect()
    body = {"messages": [{"role": "user", "content": PROMPT}]}
    client.ask(CHAT, body, scene.headers())
    await asyncio.sleep(0.05)
    client.close()
    await asyncio.sleep(0.2)


async def ended(scene: Scene) -> None:
    await scene.turn()
    path = f"/v1/conversations/{NAME}"
    assert (await scene.cluster.request("GET", path, headers=scene.headers())).status == 200
    assert (await scene.cluster.request("DELETE", path, headers=scene.headers())).status == 200


async def lost(scene: Scene) -> None:
    for name in ("d0", "d1", "p0"):
        await scene.cluster[name].stop()
        await scene.turn()


async def router_at_fault(scene: Scene) -> None:
    def fails(self: History, *args: object) -> None:
        raise RuntimeError("a fault of ours")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(History, "end", fails)
        assert await scene.turn(name="") == 200
        await asyncio.sleep(0)
        patch.setattr("conserve_sglang.router.front.name_in", fails)
        assert await scene.turn() == 500


@pytest.mark.parametrize(
    "happening",
    [
        *(good, failing, broken_off, refused, aborted, ended, lost),
        *(by_other_apis, failing_by_other_apis),
        pytest.param(router_at_fault, marks=replaces_a_part),
    ],
)
async def test_nothing_marked_is_told(
    scene: Scene, happening: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await happening(scene)
    told = await scene.told_to_others()
    form = JsonFormatter()
    logged = "\n".join([caplog.text, *(form.format(record) for record in caplog.records)])
    traced = "\n".join(span.to_json() for span in scene.spans.get_finished_spans())
    assert '"name": "turn"' in traced or happening is refused  # there none is placed
    for text in (told, logged, traced):
        assert "marked-" not in text
        assert scene.key not in text


async def test_nothing_marked_is_told_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", ADMIN_KEY)
    key = new_key(tmp_path / "keys.yaml", "a")
    rendezvous = Rendezvous()
    workers = {
        name: FakeWorker(mode, rendezvous)
        for name, mode in (("p0", "prefill"), ("d0", "decode"), ("d1", "decode"))
    }
    async with AsyncExitStack() as stack:
        for worker in workers.values():
            await stack.enter_async_context(worker.serve())
            worker.answer, worker.error_text = ANSWER, f"cannot serve {PROMPT}"
        router = RouterProcess(
            tmp_path, workers, processes=2, admin_key_env="A_KEY",
            auth={"keys_file": str(tmp_path / "keys.yaml")},
        )  # fmt: skip
        await router.start("--log-level", "debug", "--log-format", "json", "--access-log")
        try:
            statuses = await asked(router, key, workers)
            control = Client(*await asyncio.open_connection("127.0.0.1", router.control_port))
            head = f"GET /metrics HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_KEY}\r\n\r\n"
            counted = ""
            for _ in range(100):  # the fronts tell what they counted now and then
                control.send(head.encode())
                counted = (await control.answer()).body.decode()
                if 'conserve_router_turns_total{outcome="answered"} 20.0' in counted:
                    break
                await asyncio.sleep(0.1)
            control.send(head.replace("/metrics", f"/v1/conversations/{NAME}?tenant=a").encode())
            assert (await control.answer()).json()["id"] == NAME
            control.close()
        finally:
            await router.end()
        assert statuses[:20] == [200] * 20
        assert not {200, 401} & set(statuses[20:])
        log = router.log.read_text()
        turns = [line for line in log.splitlines() if json.loads(line)["event"] == "turn"]
        assert len(turns) >= 20
        assert 'conserve_router_turns_total{outcome="answered"} 20.0' in counted
        for text in (log, counted):
            assert "marked-" not in text
            assert key not in text


async def asked(router: RouterProcess, key: str, workers: dict[str, FakeWorker]) -> list[int]:
    """The statuses of turns by every API, on connections of either process, then of bad ones."""
    statuses: list[int] = []

    async def turn(path: str, name: str | None, **fields: Any) -> None:
        headers = {"authorization": f"Bearer {key}"}
        if name is not None:
            headers["x-conversation-id"] = name
        said = f"{PROMPT} {len(statuses)}"
        answer = await router.post(path, {**a_body(path, said), **fields}, headers)
        statuses.append(answer.status)

    for path in (CHAT, MESSAGES, RESPONSES, "/v1/completions", "/generate"):
        for is_stream in (False, True):
            for name in (NAME, None):
                await turn(path, name, stream=is_stream)
    for path in (CHAT, MESSAGES, RESPONSES):
        await turn(path, NAME, stream=PROMPT)
        for worker in workers.values():
            worker.faults.statuses = [400]
        await turn(path, None)
        for worker in workers.values():
            worker.faults.statuses = []
    return statuses
