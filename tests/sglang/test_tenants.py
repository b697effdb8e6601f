"""Tenants on real SGLang servers: what one has sent, no other can tell by what was cached."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from conserve_sglang.tiermap.keys import new_key
from tests.sglang.cluster import MODEL_NAME, Cluster
from tests.sglang.decoder import ids
from tests.sglang.routers import Router, running_router
from tests.sglang.talk import post

pytestmark = pytest.mark.sglang

LENGTH = 1500
NEVER_SHARED = 8  # tokens of a chat template may be all that two prompts have in common


@dataclass(frozen=True, slots=True)
class Tenants:
    """A router that asks for keys, and the keys of two tenants."""

    router: Router
    keys: dict[str, str]

    def ask(
        self, who: str, path: str, body: dict[str, Any], name: str | None = None
    ) -> tuple[Any, Any]:
        """The answer and its headers."""
        headers = {"authorization": f"Bearer {self.keys[who]}"}
        headers |= {} if name is None else {"x-conversation-id": name}
        status, answer, told = post(self.router.url + path, body, headers)
        assert status == 200, answer
        return answer, told

    def cached(self, who: str, path: str, body: dict[str, Any]) -> int:
        """Tokens of the prompt that were cached, as the tenant is told."""
        answer, _ = self.ask(who, path, body)
        usage = answer.get("usage") or answer["meta_info"]
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or usage
        return int(details.get("cached_tokens", details.get("cache_read_input_tokens", 0)) or 0)


@pytest.fixture(scope="module")
def tenants(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys = {name: new_key(file, name, may_place=True) for name in ("a", "b")}
    auth = {"keys_file": str(file)}
    with running_router(cluster, "tenants", {"name": "conserve"}, ("d0",), auth=auth) as router:
        yield Tenants(router, keys)


def asks(seed: int) -> dict[str, dict[str, Any]]:
    """A prompt of its own for each endpoint."""
    text = {path: "".join(map(chr, ids(LENGTH, seed + n))) for n, path in enumerate("ctmr")}
    said = {each: [{"role": "user", "content": text[each]}] for each in "cm"}
    named = {"model": MODEL_NAME, "temperature": 0}
    return {
        "/v1/chat/completions": {**named, "messages": said["c"], "max_tokens": 4},
        "/v1/completions": {**named, "prompt": text["t"], "max_tokens": 4},
        "/v1/messages": {**named, "messages": said["m"], "max_tokens": 4},
        "/v1/responses": {**named, "input": text["r"], "max_output_tokens": 4},
        "/generate": generated(ids(LENGTH, seed + 9)),
    }


def generated(prompt: list[int]) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}
    return {"input_ids": prompt, "sampling_params": sampling}


@pytest.mark.parametrize("path", list(asks(0)))
def test_no_tenant_can_tell_what_another_has_sent(tenants: Tenants, path: str) -> None:
    body = asks(random.randrange(10**6))[path]
    seen = [tenants.cached(who, path, body) for who in ("a", "b", "a", "b")]
    assert max(seen[:2]) <= NEVER_SHARED
    assert min(seen[2:]) >= LENGTH - 8
    assert tenants.cached("a", path, {**body, "cache_salt": "u1"}) <= NEVER_SHARED
    assert tenants.cached("b", path, {**body, "cache_salt": "u1"}) <= NEVER_SHARED
    assert tenants.cached("a", path, {**body, "cache_salt": "u1"}) >= LENGTH - 8


def test_own_next_turns_are_pinned_and_cached(tenants: Tenants) -> None:
    prompt = ids(LENGTH, random.randrange(10**6))
    contexts = {"a": list(prompt), "b": list(prompt)}
    for turn in range(3):
        for who, context in contexts.items():
            held = len(context)
            context.extend(ids(20, turn))
            answer, headers = tenants.ask(who, "/generate", generated(context), "task")
            cached = answer["meta_info"]["cached_tokens"]
            if turn == 0:
                assert (headers["x-conserve-reason"], cached) == ("first_turn", 0)
            else:
                assert headers["x-conserve-reason"] == "pinned"
                assert cached >= held - 1
            context.extend(answer["output_ids"])


def test_placed_turns_find_their_own_and_no_others(tenants: Tenants) -> None:
    prompt = ids(LENGTH, random.randrange(10**6))
    for who in ("a", "b"):
        context = list(prompt)
        first, held = placed(tenants, who, context), len(context)
        assert first["meta_info"]["cached_tokens"] == 0
        context += first["output_ids"] + ids(20, 1)
        assert placed(tenants, who, context)["meta_info"]["cached_tokens"] >= held
    assert tenants.cached("a", "/generate", generated(prompt)) >= LENGTH - 1  # relayed, the same


def placed(tenants: Tenants, who: str, context: list[int]) -> Any:
    """A turn that its client sends to the workers by itself; the decoder's answer."""
    asked = {"conversation_id": "by-itself", "input_tokens": len(context), "endpoint": "generate"}
    place, _ = tenants.ask(who, "/v1/place", asked)
    legs = [leg for leg in (place["decoder"], place["prefiller"]) if leg]
    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(
                lambda leg: post(
                    f"{leg['url']}/generate",
                    {**generated(context), **leg["fields"]},
                    leg.get("headers"),
                ),
                legs,
            )
        )
    status, answer, _ = answers[0]
    assert status == 200, answer
    meta = answer["meta_info"]
    report = {
        "turn": place["turn"],
        "event": "done",
        "prompt_tokens": meta["prompt_tokens"],
        "output_tokens": meta["completion_tokens"],
        "cached_tokens": meta["cached_tokens"],
    }
    tenants.ask(who, "/v1/place/report", report)
    return answer
