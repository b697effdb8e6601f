"""Talking to a decode server directly, as the router does: by transfer, or with the mark."""

import json
import random
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from conserve_sglang.core.local_turn import LocalLimits
from tests.sglang.cluster import Cluster
from tests.sglang.talk import post

GENEROUS = LocalLimits(max_uncached=30_000, min_cached=0)


def ids(count: int, seed: int) -> list[int]:
    """Random printable token ids; a seed gives a prompt nothing else shares."""
    rng = random.Random(seed)
    return [rng.randrange(33, 127) for _ in range(count)]


def raw_post(url: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """POST JSON; status and text, errors and streams alike."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=180) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@dataclass(slots=True)
class Decoder:
    """One decode server, the prefiller beside it, and the stock server to compare with."""

    cluster: Cluster
    name: str
    rooms: random.Random = field(default_factory=lambda: random.Random(time.time_ns()))

    @property
    def url(self) -> str:
        return self.cluster.url(self.name)

    def by_transfer(self, prompt: list[int], count: int = 16, **sampling: Any) -> list[int]:
        """Serve a turn through the prefiller."""
        room = {
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": self.cluster.bootstrap_port,
            "bootstrap_room": self.rooms.getrandbits(62),
        }
        body = {**_body(prompt, count, sampling), **room}
        with ThreadPoolExecutor(1) as beside:
            sent = beside.submit(post, f"{self.cluster.url('p0')}/generate", body)
            status, answer, _ = post(f"{self.url}/generate", body)
            sent.result()
        assert status == 200, answer
        output: list[int] = answer["output_ids"]
        return output

    def locally(
        self,
        prompt: list[int],
        count: int = 16,
        limits: LocalLimits = GENEROUS,
        rid: str | None = None,
        **sampling: Any,
    ) -> tuple[int, Any]:
        """Serve a turn here alone; status and answer."""
        body = {**_body(prompt, count, sampling), "routing_key": limits.to_routing_key()}
        status, answer, _ = post(f"{self.url}/generate", {**body, "rid": rid} if rid else body)
        return status, answer

    def reference(self, prompt: list[int], count: int = 16, **sampling: Any) -> list[int]:
        """What the stock server answers."""
        body = _body(prompt, count, sampling)
        _, answer, _ = post(f"{self.cluster.url('ref')}/generate", body)
        output: list[int] = answer["output_ids"]
        return output

    def load(self) -> dict[str, Any]:
        """Its own report of its load."""
        with urllib.request.urlopen(f"{self.url}/v1/loads?include=core", timeout=60) as answer:
            load: dict[str, Any] = json.loads(answer.read())["loads"][0]
        return load

    def capability(self) -> dict[str, Any]:
        """What the plugin says of itself."""
        with urllib.request.urlopen(f"{self.url}/server_info", timeout=60) as answer:
            state: dict[str, Any] = json.loads(answer.read())["internal_states"][0]["conserve"]
        return state

    def flush(self) -> int:
        """Empty the cache; 200 only on an idle server that leaks nothing."""
        deadline = time.monotonic() + 20
        while (status := raw_post(f"{self.url}/flush_cache", {})[0]) != 200:
            if time.monotonic() > deadline:
                break
            time.sleep(0.3)
        return status

    def log(self) -> str:
        return self.cluster.servers[self.name].log_path.read_text(errors="replace")


def _body(prompt: list[int], count: int, sampling: dict[str, Any]) -> dict[str, Any]:
    params = {"temperature": 0, "max_new_tokens": count, **sampling}
    return {"input_ids": prompt, "sampling_params": params}
