"""Clients that ask for a place and send their turns to the workers by themselves."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from conserve_sglang.core.tier import AuthSettings, EnergySettings, WorkerTlsSettings
from conserve_sglang.core.turn_tag import tag_of
from conserve_sglang.dispatch import FailureCause
from conserve_sglang.policy.api import PlacementReason, RejectReason
from conserve_sglang.router.access_log import AccessLog
from conserve_sglang.router.place_answer import LEASE_S
from conserve_sglang.router.worker import WorkerState
from conserve_sglang.telemetry.logs import ACCESS_LOGGER
from conserve_sglang.telemetry.metrics import Outcome
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.certificates import Authority, server_context
from tests.fakes.router_cluster import Answer, Client, Cluster, a_cluster
from tests.fakes.router_family import a_family

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


@pytest.fixture
async def placing(tmp_path: Path) -> AsyncIterator[Placing]:
    keys, auth = some_keys(tmp_path)
    async with a_cluster(auth=auth) as cluster:
        yield Placing(cluster, keys)


@pytest.mark.parametrize("path", [CHAT, "/generate"])
async def test_conversation_is_served_without_a_byte_through_the_router(
    placing: Placing, path: str
) -> None:
    first, answer = await placing.turn("c", "hello", path=path)
    assert answer.status == 200
    assert (first["reason"], first["attempt"]) == ("first_turn", 1)
    assert first["prefiller"]["id"] == "p0"
    second, answer = await placing.turn("c", "hello", "the answer", "more", path=path)
    assert answer.status == 200
    assert second["prefiller"] is None
    assert second["decoder"]["id"] == first["decoder"]["id"]
    decoder = placing.cluster[first["decoder"]["id"]]
    assert len(decoder.turns) == 2
    assert placing.books() == {
        "resident": len("hellothe answermorethe answer"), "reserved": 0, "backlog": 0
    }  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, "/generate"])
async def test_where_energy_is_read_decoders_are_told_the_turn(tmp_path: Path, path: str) -> None:
    keys, auth = some_keys(tmp_path)
    async with a_cluster(auth=auth, energy=EnergySettings()) as cluster:
        placing = Placing(cluster, keys)
        endpoint = "chat" if path == CHAT else "generate"
        place = await placing.place("c", 800, endpoint=endpoint)
    told = {**place["decoder"]["headers"], **place["decoder"]["fields"]}
    tag = tag_of(told.get("x-smg-routing-key") or told.get("routing_key"))
    assert tag is not None
    assert tag[1] == 1


async def test_placed_and_relayed_turns_share_a_conversation(placing: Placing) -> None:
    place, _ = await placing.turn("c", "hello")
    messages = [{"role": "user", "content": "hello"}]
    named = {"x-conversation-id": "c"}
    relayed = await placing.post(CHAT, {"messages": messages}, "trusted", **named)
    assert relayed.headers["x-conserve-decoder"] == place["decoder"]["id"]
    assert relayed.headers["x-conserve-reason"] == "pinned"


async def test_refused_turn_gets_a_place_in_phase_one(placing: Placing) -> None:
    place, _ = await placing.turn("c", "x" * 1000)
    placing.cluster[place["decoder"]["id"]].resident.clear()
    place, answer = await placing.turn("c", "x" * 1000, "the answer", "more")
    assert answer.status == 409
    again = await placing.report(place, "failed", cause="prefix_missing")
    assert again.status == 200
    assert again.json()["reason"] == "prefix_missing"
    assert again.json()["prefiller"]["id"] == "p0"
    assert again.json()["turn"] == place["turn"]
    assert (await placing.report(place, "abandoned")).status == 200
    assert placing.books()["reserved"] == placing.books()["backlog"] == 0


async def test_turn_of_a_busy_decoder_gets_a_place_at_another_and_then_none(
    placing: Placing,
) -> None:
    first, _ = await placing.turn("c", "hello")
    busy = placing.cluster[first["decoder"]["id"]]
    busy.faults.queue_is_full = True
    place, answer = await placing.turn("c", "hello", "the answer", "more")
    assert answer.status == 503
    again = await placing.report(place, "failed", cause="decoder_busy")
    assert (again.status, again.json()["reason"]) == (200, "decoder_busy")
    assert again.json()["decoder"]["id"] != first["decoder"]["id"]
    told = await placing.report(place, "failed", cause="decoder_busy")
    assert (told.status, told.json()["error"]["code"]) == (503, "worker_busy")
    assert told.headers["retry-after"] == "5"
    back = await placing.place("c", 20)
    assert (back["decoder"]["id"], back["reason"]) == (first["decoder"]["id"], "pinned")


async def test_only_trusted_tenants_may_ask(placing: Placing) -> None:
    answer = await placing.post("/v1/place", {"input_tokens": 5}, "stranger")
    assert (answer.status, answer.json()["error"]["code"]) == (403, "may_not_place")
    assert (await placing.cluster.post("/v1/place", {"input_tokens": 5})).status == 401


async def test_anothers_turn_cannot_be_reported(placing: Placing) -> None:
    place = await placing.place("c", 5)
    report = {"turn": place["turn"], "event": "abandoned"}
    unknown = await placing.post("/v1/place/report", {**report, "turn": "0" * 32}, "other")
    foreign = await placing.post("/v1/place/report", report, "other")
    assert foreign.status == unknown.status == 404
    assert foreign.body == unknown.body
    assert (await placing.report(place, "done", prompt_tokens=5, output_tokens=1)).status == 200
    assert (await placing.report(place, "done")).status == 404


async def test_turn_not_heard_of_is_given_up(
    placing: Placing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await placing.place("c", 500)
    late = await placing.place("d", 500)
    placements = placing.cluster.service.placements
    now = placements._clock()
    monkeypatch.setattr(placements, "_clock", lambda: now + LEASE_S - 1)
    placements.sweep()
    assert len(placements) == 2
    assert (await placing.report(late, "first_token")).status == 200
    monkeypatch.setattr(placements, "_clock", lambda: now + LEASE_S + 1)
    placements.sweep()
    assert len(placements) == 1
    assert (await placing.report(late, "done", prompt_tokens=500)).status == 200
    assert placing.books()["reserved"] == placing.books()["backlog"] == 0


async def test_client_that_waits_for_room_is_not_given_up(
    placing: Placing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("c", "d"):  # both decoders are full
        full = await placing.place(name, 90_000)
        assert (await placing.report(full, "first_token")).status == 200
    placements = placing.cluster.service.placements
    waiting = asyncio.ensure_future(placing.place("e", 90_000))
    await placing.cluster.until(lambda: len(placements) == 3)
    now = placements._clock()
    monkeypatch.setattr(placements, "_clock", lambda: now + LEASE_S + 1)
    placements.sweep()
    assert len(placements) == 1
    trusted = {"authorization": f"Bearer {placing.keys['trusted']}"}
    for name in ("c", "d"):
        path = f"/v1/conversations/{name}"
        ended = await placing.cluster.request("DELETE", path, headers=trusted)
        assert ended.status == 200
    place = await asyncio.wait_for(waiting, 5)
    assert (await placing.report(place, "done", prompt_tokens=90_000)).status == 200


async def test_turn_of_a_lost_decoder_is_over(placing: Placing) -> None:
    place = await placing.place("c", 500)
    service = placing.cluster.service
    worker = next(w for w in service.fleet.workers() if w.worker_id == place["decoder"]["id"])
    service.fleet.lose(worker, "told so")
    assert (await placing.report(place, "done", prompt_tokens=500)).status == 404
    assert placing.books() == {"resident": 0, "reserved": 0, "backlog": 0}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"input_tokens":0}', b'{"input_tokens":"x"}', b"\xff",
             b'{"input_tokens":5,"conversation_id":"' + b"n" * 300 + b'"}']
)  # fmt: skip
async def test_bad_body_is_a_400(placing: Placing, body: bytes) -> None:
    for path in ("/v1/place", "/v1/place/report"):
        answer = await placing.post(path, body)
        assert answer.status == 400
        assert answer.json()["error"]["message"]


async def test_prompt_no_decoder_can_hold_is_refused(placing: Placing) -> None:
    answer = await placing.post("/v1/place", {"input_tokens": 10_000_000})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_workers_that_speak_tls_are_told_as_such(tmp_path: Path) -> None:
    keys, auth = some_keys(tmp_path)
    authority = Authority(tmp_path)
    async with a_cluster(
        auth=auth,
        worker_tls=WorkerTlsSettings(ca_file=str(authority.file)),
        worker_context=server_context(authority.issue("worker")),
    ) as cluster:
        placing = Placing(cluster, keys, authority.client())
        for said in (("hello",), ("hello", "the answer", "more")):
            place, answer = await placing.turn("c", *said)
            assert answer.status == 200
        assert place["reason"] == "pinned"


async def test_turns_are_placed_and_reported_through_any_front(tmp_path: Path) -> None:
    keys, auth = some_keys(tmp_path)
    async with a_family(auth=auth) as family:
        placing = Placing(family, keys)
        said = ["hello"]
        for number in range(8):  # each request on a connection of its own
            place, answer = await placing.turn("c", *said)
            assert answer.status == 200
            assert (place["prefiller"] is None) == (number > 0)
            said += ["the answer", "more"]
        lost = await placing.place("d", 5)
        await placing.report(lost, "failed", cause="decoder_failed")
        assert (await placing.report(lost, "abandoned")).status == 200
        assert family.num_open_turns == 0
        metrics = family.many.metrics()
        assert metrics.turns[Outcome.ANSWERED] == 8
        assert metrics.turns[Outcome.CLIENT_LEFT] == 1
        assert placing.books()["reserved"] == 0
        refused = await placing.post("/v1/place", {"input_tokens": 5}, who="stranger")
        assert refused.status == 403


async def test_placed_turns_are_counted_as_any_others(placing: Placing) -> None:
    metrics = placing.cluster.service.metrics()
    await placing.turn("c", "hello")
    assert metrics.turns[Outcome.ANSWERED] == 1
    assert metrics.placements[PlacementReason.FIRST_TURN] == metrics.num_kv_transfers == 1
    assert (metrics.prompt_tokens, metrics.output_tokens) == (len("hello"), len("the answer"))
    assert metrics.kv_transferred_tokens == len("hello")
    place = await placing.place("c", 30)
    await placing.report(place, "failed", cause="decoder_failed")
    await placing.report(place, "abandoned")
    assert metrics.failures[FailureCause.DECODER_FAILED] == metrics.num_retries == 1
    assert metrics.turns[Outcome.CLIENT_LEFT] == 1
    await placing.post("/v1/place", {"input_tokens": 10_000_000})
    assert metrics.turns[Outcome.REJECTED] == 1
    assert metrics.rejections[RejectReason.TOO_LONG] == 1
    tenant = metrics.tenants["trusted"]
    assert (tenant.turns, tenant.rejections, tenant.prompt_tokens) == (3, 1, len("hello"))
    assert all(not sum(each.ttft.counts) for each in metrics.timings.values())  # nobody said


async def test_place_that_needs_a_worker_that_is_not_there_is_refused_as_that(
    placing: Placing,
) -> None:
    cluster = placing.cluster
    await cluster["p0"].stop()
    await cluster.until(lambda: cluster.state_of("p0") is WorkerState.LOST)
    asked = asyncio.ensure_future(placing.post("/v1/place", {"input_tokens": 5}))
    dispatcher = cluster.service.brain.dispatcher
    await cluster.until(lambda: dispatcher.num_queued == 1)
    answer = await asked
    assert (answer.status, answer.json()["error"]["code"]) == (503, "no_worker")
    assert "can prefill" in answer.json()["error"]["message"]
    rejections = cluster.service.metrics().rejections
    assert rejections[RejectReason.NO_PREFILLER] == 1


async def test_turns_that_nobody_ends_are_counted(placing: Placing) -> None:
    metrics = placing.cluster.service.metrics()
    place, _ = await placing.turn("c", "hello")
    await placing.place("c", 30)
    service = placing.cluster.service
    worker = next(w for w in service.fleet.workers() if w.worker_id == place["decoder"]["id"])
    service.fleet.lose(worker, "told so")
    assert metrics.turns[Outcome.BROKEN_OFF] == 1


async def test_latencies_are_those_that_the_client_reports(placing: Placing) -> None:
    metrics = placing.cluster.service.metrics()
    place = await placing.place("c", 30)
    await placing.report(
        place, "done", prompt_tokens=30, output_tokens=11, first_token_s=0.5, total_s=2.5,
        has_called_tools=True,
    )  # fmt: skip
    (timings,) = metrics.timings.values()
    assert sum(timings.ttft.counts) == 1
    assert timings.ttft.sum_s == pytest.approx(0.5)
    assert timings.e2e.sum_s == pytest.approx(2.5)
    assert timings.tbt.sum_s == pytest.approx(2.0 / 10)
    assert sum(timings.ttfet.counts) == 0
    place = await placing.place("c", 60)
    await placing.report(place, "first_token", first_token_s=0.25)
    await placing.report(place, "done", prompt_tokens=60, has_called_tools=False)
    ttfets = [each.ttfet for each in metrics.timings.values() if sum(each.ttfet.counts)]
    assert [sum(each.counts) for each in ttfets] == [1]
    assert 0.25 < ttfets[0].sum_s < 30  # from the arrival of turn 1


async def test_ttfet_is_left_out_where_no_client_said_when_it_was(placing: Placing) -> None:
    metrics = placing.cluster.service.metrics()
    await placing.turn("c", "hello")
    await placing.post(
        CHAT, {"messages": [{"role": "user", "content": "hello"}]}, **{"x-conversation-id": "c"}
    )
    assert all(not sum(each.ttfet.counts) for each in metrics.timings.values())


async def test_access_log_has_placed_turns(
    placing: Placing, caplog: pytest.LogCaptureFixture
) -> None:
    heard = AccessLog()
    placing.cluster.service.door.executor.meter.listeners = (heard,)
    with caplog.at_level("INFO", logger=ACCESS_LOGGER):
        place, _ = await placing.turn("c", "hello")
    (record,) = (each for each in caplog.records if each.name == ACCESS_LOGGER)
    said = record.getMessage()
    assert f"decoder={place['decoder']['id']}" in said
    assert "outcome=answered" in said
    assert "first_byte_s" not in said


async def test_a_turns_id_says_nothing_of_others(placing: Placing) -> None:
    ids = [(await placing.place(name, 5))["turn"] for name in ("a", "b", "c")]
    assert all(len(bytes.fromhex(each)) == 16 for each in ids)
    assert len({each[:8] for each in ids}) == 3
    for near in (ids[0].upper(), f" {ids[0]}", f"0x{ids[0]}", ids[0][:-1], "-1"):
        answer = await placing.post("/v1/place/report", {"turn": near, "event": "done"})
        assert answer.status == 404


async def test_one_request_reports_the_last_turn_and_places_the_next(placing: Placing) -> None:
    metrics = placing.cluster.service.metrics()
    first = await placing.place("c", 30)
    last = {"turn": first["turn"], "event": "done", "prompt_tokens": 30, "output_tokens": 4}
    second = await placing.place("c", 40, last=last)
    assert (second["reason"], second["last_known"]) == ("pinned", True)
    assert metrics.turns[Outcome.ANSWERED] == 1
    third = await placing.place("c", 50, last=last)
    assert third["last_known"] is False
    assert "last_known" not in first
    assert len(placing.cluster.service.placements) == 2
    failed = await placing.post(
        "/v1/place", {"input_tokens": 5, "last": {**last, "event": "failed"}}
    )
    assert failed.status == 400
