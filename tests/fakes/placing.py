"""A trusted client of a router: it asks for places, talks to the workers, and reports."""

import asyncio
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.router_cluster import Answer, Client, Cluster

CHAT = "/v1/chat/completions"


class Placing:
    """A trusted client of a router that asks for keys."""

    def __init__(
        self, cluster: Cluster, keys: dict[str, str], tls: ssl.SSLContext | None = None
    ) -> None:
        self.cluster = cluster
        self.tls = tls  # what workers are asked with
        self.keys = keys

    async def post(self, path: str, body: Any, who: str = "trusted", **more: str) -> Answer:
        headers = {"authorization": f"Bearer {self.keys[who]}", **more}
        return await self.cluster.post(path, body, headers)

    async def place(self, name: str, input_tokens: int, **fields: Any) -> dict[str, Any]:
        asked = {"conversation_id": name, "input_tokens": input_tokens, **fields}
        answer = await self.post("/v1/place", asked)
        assert answer.status == 200, answer.body
        return dict(answer.json())

    async def report(self, place: dict[str, Any], event: str, **fields: Any) -> Answer:
        return await self.post(
            "/v1/place/report", {"turn": place["turn"], "event": event, **fields}
        )

    async def turn(self, name: str, *said: str, path: str = CHAT) -> tuple[dict[str, Any], Answer]:
        """Ask for a place, talk to the workers, and report."""
        endpoint = {CHAT: "chat", "/generate": "generate"}[path]
        place = await self.place(name, len("".join(said)), endpoint=endpoint)
        body: dict[str, Any] = {"text": "".join(said)}
        if path == CHAT:
            roles = ("user", "assistant")
            body = {"messages": [{"role": roles[n % 2], "content": s} for n, s in enumerate(said)]}
        legs = [ask_worker(place["decoder"], path, body, self.tls)]
        if place["prefiller"]:
            legs.append(ask_worker(place["prefiller"], path, body, self.tls))
        answer = (await asyncio.gather(*legs))[0]
        if answer.status != 200:
            return place, answer
        told = answer.json()
        usage = told.get("usage") or told["meta_info"]
        details = usage.get("prompt_tokens_details") or usage
        reported = await self.report(
            place, "done",
            prompt_tokens=usage["prompt_tokens"], output_tokens=usage["completion_tokens"],
            cached_tokens=details["cached_tokens"],
        )  # fmt: skip
        assert reported.status == 200
        return place, answer

    def books(self) -> dict[str, int]:
        loads = self.cluster.service.brain.dispatcher.worker_loads()
        return {
            "resident": sum(load.resident_tokens for load in loads),
            "reserved": sum(load.reserved_tokens for load in loads),
            "backlog": sum(load.backlog_tokens for load in loads),
        }


async def ask_worker(
    where: dict[str, Any], path: str, body: dict[str, Any], tls: ssl.SSLContext | None
) -> Answer:
    url = urlsplit(where["url"])
    assert url.scheme == ("http" if tls is None else "https")
    client = Client(*await asyncio.open_connection(url.hostname, url.port, ssl=tls))
    client.ask(path, {**where["fields"], **body}, where.get("headers"))
    answer = await client.answer()
    client.close()
    return answer


def some_keys(tmp_path: Path) -> tuple[dict[str, str], AuthSettings]:
    file = tmp_path / "keys.yaml"
    keys = {name: new_key(file, name, may_place=name != "stranger")
            for name in ("trusted", "other", "stranger")}  # fmt: skip
    return keys, AuthSettings(keys_file=str(file))
