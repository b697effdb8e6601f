"""What tenants can tell of each other's prompts by what workers had cached: nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.ids import TenantId
from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.router.payload import BadBody, Endpoint, read_payload
from conserve_sglang.router.salt import SALT_FIELDS, Salts
from conserve_sglang.router.wire import request
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.router_cluster import Answer, Cluster, a_cluster
from tests.fakes.router_family import a_family
from tests.fakes.sglang_worker import Seen

SECRET = b"s" * 32
A, B = TenantId("a"), TenantId("b")
SAID = "hello there, all of you"
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": SAID}]},
    "/v1/completions": {"prompt": SAID},
    "/generate": {"text": SAID},
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": SAID}],
    },
    "/v1/responses": {"input": SAID},
}
every_endpoint = pytest.mark.parametrize("path", ASKS)
MIXED = {"m0": "null"}
PAIR = {"p0": "prefill", "d0": "decode"}


def sent(endpoint: Endpoint, body: dict[str, Any], tenant: TenantId | None = A) -> Any:
    salt = None if tenant is None else Salts(SECRET).of(tenant)
    payload = read_payload(endpoint, json.dumps(body).encode(), salt)
    head_and_body = b"".join(map(bytes, request(b"h:1", b"", b'"session_id":"s",', payload)))
    return json.loads(head_and_body.partition(b"\r\n\r\n")[2])


def test_salt_is_the_tenants_and_the_secrets_and_tells_neither() -> None:
    members = {Salts(secret).of(who).member for secret in (SECRET, b"other") for who in (A, B)}
    assert len(members) == 4
    assert Salts(SECRET).of(A).member == Salts(SECRET).of(A).member
    salts = Salts(SECRET)
    assert salts.of(A) is salts.of(A)


def test_what_clients_say_keeps_a_tenants_users_apart() -> None:
    salt = Salts(SECRET).of(A)
    said = [("", ""), ("x", ""), ("", "x"), ("xy", ""), ("x", "y"), ("\udc80", ""), ("1:x", "")]
    assert len({salt.member_with(each) for each in said}) == len(said)
    assert salt.member_with(("", "")) == salt.member
    assert salt.member_with(("x", "")) == Salts(SECRET).of(A).member_with(("x", ""))
    assert salt.member_with(("x", "")) != Salts(SECRET).of(B).member_with(("x", ""))


@pytest.mark.parametrize("name", SALT_FIELDS)
def test_clients_own_value_never_passes_with_keys_and_as_it_is_without(name: str) -> None:
    body = {"messages": [], "temperature": 0.5, name: "theirs"}
    salted = sent(Endpoint.CHAT, body)
    assert "cache_salt" not in salted
    assert salted["extra_key"] not in ("theirs", sent(Endpoint.CHAT, {"messages": []})["extra_key"])
    assert salted["temperature"] == 0.5
    assert sent(Endpoint.CHAT, body, None) == {**body, "session_id": "s"}


def test_name_said_twice_or_in_escapes_is_the_clients_own_all_the_same() -> None:
    salt = Salts(SECRET).of(A)
    raw = b'{"extra_key":"x","messages":[],"extra\\u005fkey":"y","extra_key":"z"}'
    payload = read_payload(Endpoint.CHAT, raw, salt)
    assert bytes(payload.rest) == b'"messages":[]}'
    assert payload.inserts == salt.member_with(("", "z"))


def test_none_and_nothing_are_no_value_of_the_clients() -> None:
    own = sent(Endpoint.CHAT, {"messages": []})
    for nothing in (None, ""):
        assert sent(Endpoint.CHAT, {"messages": [], "extra_key": nothing}) == own


@pytest.mark.parametrize("wrong", [["x"], 5, {"a": 1}])
def test_values_that_are_no_text_are_refused(wrong: Any) -> None:
    with pytest.raises(BadBody) as refused:
        sent(Endpoint.GENERATE, {"text": "x", "extra_key": wrong})
    assert (refused.value.problem.status, refused.value.problem.param) == (400, "extra_key")


def test_streamed_turn_has_both_what_is_asked_for_and_the_salt() -> None:
    body = sent(Endpoint.CHAT, {"messages": [], "stream": True})
    assert body["stream_options"] == {"include_usage": True}
    assert body["extra_key"] == sent(Endpoint.CHAT, {"messages": []})["extra_key"]


class Tenants:
    """A router that asks for keys, and the keys of two tenants."""

    def __init__(self, cluster: Cluster, keys: dict[str, str]) -> None:
        self.cluster = cluster
        self.keys = keys

    async def ask(
        self, who: str, path: str, body: dict[str, Any], name: str | None = None
    ) -> Answer:
        headers = {"authorization": f"Bearer {self.keys[who]}"}
        headers |= {} if name is None else {"x-conversation-id": name}
        answer = await self.cluster.post(path, body, headers)
        assert answer.status == 200, answer.body
        return answer

    async def cached(self, who: str, path: str, **more: Any) -> int:
        return cached_in(await self.ask(who, path, {**ASKS[path], **more}))

    def seen(self) -> list[Seen]:
        return [seen for worker in self.cluster.workers.values() for seen in worker.turns]


def cached_in(answer: Answer) -> int:
    told = answer.json()
    usage = told.get("usage") or told["meta_info"]
    if "cache_read_input_tokens" in usage:
        return int(usage["cache_read_input_tokens"])
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or usage
    return int(details["cached_tokens"])


@asynccontextmanager
async def some_tenants(
    tmp_path: Path, modes: dict[str, str] | None = None, **settings: Any
) -> AsyncIterator[Tenants]:
    file = tmp_path / "keys.yaml"
    file.unlink(missing_ok=True)
    keys = {name: new_key(file, name, may_place=True) for name in ("a", "b")}
    async with a_cluster(modes, auth=AuthSettings(keys_file=str(file)), **settings) as cluster:
        yield Tenants(cluster, keys)


@every_endpoint
@pytest.mark.parametrize("modes", [MIXED, PAIR], ids=["mixed", "pair"])
async def test_anothers_prompt_is_not_found_and_ones_own_is(
    tmp_path: Path, path: str, modes: dict[str, str]
) -> None:
    policy = "round-robin" if modes is MIXED else "conserve"
    async with some_tenants(tmp_path, modes, policy=policy) as tenants:
        assert await tenants.cached("a", path) == 0
        assert await tenants.cached("b", path) == 0
        assert await tenants.cached("a", path) == len(SAID)
        assert await tenants.cached("b", path) == len(SAID)


@every_endpoint
async def test_without_keys_it_is_found_and_a_clients_own_salt_keeps_it_apart(path: str) -> None:
    async with a_cluster(PAIR) as cluster:
        body = ASKS[path]
        cached = [cached_in(await cluster.post(path, body)) for _ in range(2)]
        cached.append(cached_in(await cluster.post(path, {**body, "cache_salt": "x"})))
        assert cached == [0, len(SAID), 0]
        assert {seen.body.get("extra_key") for seen in cluster["p0"].turns} == {None}
        assert cluster["p0"].turns[-1].body["cache_salt"] == "x"


@every_endpoint
async def test_users_of_a_tenant_are_kept_apart_by_what_it_sends(tmp_path: Path, path: str) -> None:
    async with some_tenants(tmp_path) as tenants:
        for user in ({"cache_salt": "u1"}, {"cache_salt": "u2"}, {"extra_key": "u1"}, {}):
            cached = [await tenants.cached("a", path, **user) for _ in range(2)]
            assert cached == [0, len(SAID)]
        assert await tenants.cached("b", path, cache_salt="u1") == 0
        assert not any("cache_salt" in seen.body for seen in tenants.seen())


async def test_nobody_aims_at_another_by_sending_its_salt(tmp_path: Path) -> None:
    path = "/generate"
    async with some_tenants(tmp_path) as tenants:
        await tenants.cached("a", path)
        salts = {seen.body["extra_key"] for seen in tenants.seen()}
        for salt in salts:
            assert await tenants.cached("b", path, extra_key=salt) == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
async def test_own_next_turn_is_pinned_and_cached(tmp_path: Path, path: str) -> None:
    async with some_tenants(tmp_path) as tenants:
        for who in ("a", "b"):
            await tenants.ask(who, path, ASKS[path], "c")
            more = SAID + "the answer" + "more"
            body: dict[str, Any] = {"text": more} if path == "/generate" else {"prompt": more}
            if path.endswith("chat/completions"):
                said = [{"role": "assistant", "content": "the answer"}]
                body = {"messages": [*ASKS[path]["messages"], *said,
                                     {"role": "user", "content": "more"}]}  # fmt: skip
            answer = await tenants.ask(who, path, body, "c")
            assert answer.headers["x-conserve-reason"] == "pinned"
            assert cached_in(answer) == len(SAID + "the answer")
        by_session: dict[str, set[str]] = {}
        for seen in tenants.seen():
            if "session_id" in seen.body:
                by_session.setdefault(seen.body["session_id"], set()).add(seen.body["extra_key"])
        assert sorted(map(len, by_session.values())) == [1, 1]
        assert len(set.union(*by_session.values())) == 2


async def test_answer_that_goes_on_elsewhere_keeps_its_salt(tmp_path: Path) -> None:
    async with some_tenants(tmp_path) as tenants:
        for name in ("d0", "d1"):
            tenants.cluster[name].answer = "one two three four five"
            tenants.cluster[name].faults.cut_after_events = 3
        body = {**ASKS["/v1/chat/completions"], "stream": True}
        headers = {"authorization": f"Bearer {tenants.keys['a']}"}
        asked = asyncio.create_task(tenants.cluster.post("/v1/chat/completions", body, headers))
        first = ("d0", "d1")
        await tenants.cluster.until(lambda: any(tenants.cluster[n].turns for n in first))
        for name in first:
            if not tenants.cluster[name].turns:
                tenants.cluster[name].faults.cut_after_events = None
        assert (await asked).is_whole
        seen = tenants.seen()
        assert any("rid" in each.body for each in seen)
        assert len(seen) >= 4
        assert len({each.body["extra_key"] for each in seen}) == 1


async def test_placed_turn_is_told_the_salt_that_a_relayed_one_has(tmp_path: Path) -> None:
    ask = {"conversation_id": "c", "input_tokens": 9, "endpoint": "generate"}
    async with some_tenants(tmp_path) as tenants:
        for user in ({}, {"cache_salt": "u1"}, {"cache_salt": None, "extra_key": "u2"}):
            told = []
            for who in ("a", "b"):
                body = {**ask, **user, "conversation_id": who + str(user)}
                place = (await tenants.ask(who, "/v1/place", body)).json()
                fields = [place[leg]["fields"] for leg in ("decoder", "prefiller")]
                assert fields[0]["extra_key"] == fields[1]["extra_key"]
                told.append(fields[0]["extra_key"])
                await tenants.cached(who, "/generate", **user)
                assert tenants.cluster["p0"].turns[-1].body["extra_key"] == told[-1]
            assert told[0] != told[1]


async def test_salts_outlive_the_router(tmp_path: Path) -> None:
    found = set()
    for _ in range(2):
        async with some_tenants(tmp_path, secret=SECRET) as tenants:
            await tenants.cached("a", "/generate")
            found |= {seen.body["extra_key"] for seen in tenants.seen()}
    assert len(found) == 1


async def test_all_processes_of_a_router_have_the_same(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    keys = {name: new_key(file, name, may_place=True) for name in ("a", "b")}
    async with a_family(auth=AuthSettings(keys_file=str(file))) as family:
        tenants = Tenants(family, keys)
        placed = {}
        for who in ("a", "b"):  # placed by the brain, relayed by a front of its own
            body = {"conversation_id": "c", "input_tokens": 9, "endpoint": "generate"}
            place = (await tenants.ask(who, "/v1/place", body)).json()
            placed[who] = place["prefiller"]["fields"]["extra_key"]
            for _ in range(3):
                await tenants.cached(who, "/generate")
                assert family["p0"].turns[-1].body["extra_key"] == placed[who]
        assert placed["a"] != placed["b"]
