"""Clients that ask for a place and send their turns to the workers by themselves."""

import asyncio
from pathlib import Path

import pytest

from conserve_sglang.core.tier import EnergySettings, WorkerTlsSettings
from conserve_sglang.core.turn_tag import tag_of
from conserve_sglang.router.place_answer import LEASE_S
from conserve_sglang.telemetry.metrics import Outcome
from tests.fakes.certificates import Authority, server_context
from tests.fakes.placing import CHAT, Placing, some_keys
from tests.fakes.router_cluster import a_cluster
from tests.fakes.router_family import a_family


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
