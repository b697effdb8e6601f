"""Neither prompts, answers, names nor keys get into the log, the metrics or others' answers."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.router.identity import History
from conserve_sglang.telemetry.logs import JsonFormatter
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.patching import replaces_a_part
from tests.fakes.router_cluster import Cluster, a_cluster

PROMPT, ANSWER, NAME = "marked-prompt", "marked-answer", "marked-name"
WORKER_KEY, ADMIN_KEY = "marked-worker-key", "marked-admin-key"
CHAT = "/v1/chat/completions"


class Scene:
    """A cluster with every key set, whose workers quote what they are asked in their errors."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self.cluster = cluster
        self.key = key
        self.num_turns = 0

    def headers(self, **more: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}", **more}

    async def turn(self, path: str = CHAT, name: str = NAME, **fields: Any) -> int:
        self.num_turns += 1
        said = f"{PROMPT} {self.num_turns} conserve-refused reason={PROMPT} cached=1 uncached=1"
        body = {"messages": [{"role": "user", "content": said}], "prompt": said, "text": said}
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
    for text in (told, logged):
        assert "marked-" not in text
        assert scene.key not in text
