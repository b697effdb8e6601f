"""Several replicas of the router in front of the same workers, with a real Redis between them."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.router import replica_line
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.replicas import a_site, is_degraded
from tests.fakes.router_cluster import Answer, Cluster
from tests.fakes.router_process import a_router_process

SAID = ("a long first message", "the answer", "and the next", "the answer", "and the last")


def chat_body(*said: str) -> dict[str, Any]:
    messages = [
        {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)
    ]
    return {"model": "tiny", "messages": messages}


def why(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return answer.headers["x-conserve-reason"]


async def settled() -> None:
    """Longer than a client needs to come back with its next turn."""
    await asyncio.sleep(0.02)


async def test_turns_of_a_conversation_may_go_to_any_replica(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        one, two = await site.replica(), await site.replica()
        first = await one.chat(SAID[0])
        assert why(first) == "first_turn"
        await settled()
        second = await two.chat(*SAID[:3])
        await settled()
        third = await one.chat(*SAID)
        decoders = {each.headers["x-conserve-decoder"] for each in (first, second, third)}
        assert (why(second), why(third), len(decoders)) == ("pinned", "pinned", 1)
        cached = third.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == sum(map(len, SAID[:4]))
        assert site.prefilled() == 1
        about = (await one.request("GET", "/v1/conversations/c")).json()
        assert (about["turns"], about["kv_transfers"]) == (3, 1)


async def test_a_history_is_found_whichever_replica_saw_it_last(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        one, two = await site.replica(), await site.replica()
        first = await one.chat(SAID[0], name=None)
        await settled()
        second = await two.chat(*SAID[:3], name=None)
        await settled()
        third = await one.chat(*SAID, name=None)
        names = {each.headers["x-conversation-id"] for each in (first, second, third)}
        assert (why(second), why(third), len(names)) == ("pinned", "pinned", 1)


async def test_hundreds_of_first_turns_at_two_replicas_are_pinned_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_line, "ANSWER_TIMEOUT_S", 10.0)  # one loop has all parties here
    async with a_site(tmp_path) as site:
        site.workers["p0"].faults.delay_s = 0.05
        one, two = await site.replica(), await site.replica()
        few = asyncio.Semaphore(100)  # more than a listener's backlog at once may be refused

        async def at_both(number: int) -> list[Answer]:
            async with few:
                said, name = f"hello {number}", f"c{number}"
                return list(
                    await asyncio.gather(one.chat(said, name=name), two.chat(said, name=name))
                )

        both = await asyncio.gather(*map(at_both, range(300)))
        answers = [answer for pair in both for answer in pair]
        assert not is_degraded(one)
        assert not is_degraded(two)
        assert {answer.status for answer in answers} == {200}
        decoders: dict[str, set[str]] = {}
        for answer in answers:
            name = answer.headers["x-conversation-id"]
            decoders.setdefault(name, set()).add(answer.headers["x-conserve-decoder"])
        assert len(decoders) == 300
        assert [name for name, found in decoders.items() if len(found) != 1] == []


async def test_a_prompt_of_text_or_token_ids_is_found_at_another_replica(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        one, two = await site.replica(), await site.replica()
        for said in ("tell me more. " * 200, list(range(700))):
            body: dict[str, Any] = {"stream": False, "sampling_params": {"max_new_tokens": 4}}
            asked: Any = {"text": said} if isinstance(said, str) else {"input_ids": said}
            first = await one.post("/generate", body | asked)
            await settled()
            if isinstance(said, str):
                asked = {"text": said + first.json()["text"] + " go on"}
            else:
                asked = {"input_ids": [*said, *first.json()["output_ids"], 7, 8]}
            second = await two.post("/generate", body | asked)
            assert (why(first), why(second)) == ("first_turn", "pinned")


async def test_what_was_pinned_twice_while_redis_was_gone_is_squared(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        one, two = await site.replica(), await site.replica()
        await site.redis.kill()
        await one.until(lambda: is_degraded(one) and is_degraded(two))
        await one.chat("y" * 900, name="more on one decoder")
        first = (await one.chat(SAID[0])).headers["x-conserve-decoder"]
        other = (await two.chat(SAID[0])).headers["x-conserve-decoder"]
        assert first != other
        await site.redis.start()
        await one.until(lambda: not (is_degraded(one) or is_degraded(two)))
        await one.until(lambda: any(each.closed_sessions for each in site.workers.values()))
        released = [name for name, each in site.workers.items() if each.closed_sessions]
        assert len(released) == 1
        for each in (one, two):
            answer = await each.chat(*SAID[:3])
            assert why(answer) == "pinned"
            assert {answer.headers["x-conserve-decoder"]} == {first, other} - set(released)
            await settled()


async def test_routers_of_several_processes_are_replicas_too(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        state = {"redis": site.redis.url, "namespace": "many"}
        settings: dict[str, Any] = {"state": state, "processes": 2}
        async with (
            a_router_process(tmp_path, site.workers, "one", **settings) as one,
            a_router_process(tmp_path, site.workers, "two", **settings) as two,
        ):
            await asyncio.sleep(0.3)
            for name in ("c", None):
                first = await one.chat(SAID[0], name=name)
                await settled()
                second = await two.chat(*SAID[:3], name=name)
                await settled()
                third = await one.chat(*SAID, name=name)
                assert (why(first), why(second), why(third)) == ("first_turn", "pinned", "pinned")
            answers = await asyncio.gather(
                *(
                    replica.chat(f"hello {number}", name=f"c{number}")
                    for number in range(40)
                    for replica in (one, two)
                )
            )
        places = {
            (a.headers["x-conversation-id"], a.headers["x-conserve-decoder"]) for a in answers
        }
        assert len(places) == 40


def kv_elsewhere(cluster: Cluster) -> int:
    return sum(load.foreign_tokens for load in cluster.service.brain.dispatcher.worker_loads())


def kv_here(cluster: Cluster) -> int:
    return sum(load.resident_tokens for load in cluster.service.brain.dispatcher.worker_loads())


async def test_what_a_replica_has_on_the_workers_counts_for_the_others_until_it_dies(
    tmp_path: Path,
) -> None:
    async with a_site(tmp_path) as site:
        one = await site.replica()
        async with site.a_replica() as two:
            await two.chat("x" * 500)
            held = kv_here(two)
            assert held > 500
            await one.until(lambda: kv_elsewhere(one) == held)
            await one.chat("x" * 500, "the answer", "mine now")
            await one.until(lambda: kv_here(two) == 0 and kv_elsewhere(one) == 0)
            assert kv_here(one) > held
            await two.chat("y" * 300, name="other")
            await one.until(lambda: kv_elsewhere(one) == kv_here(two) > 0)
        await one.until(lambda: kv_elsewhere(one) == 0)


async def test_a_conversation_that_one_replica_ends_has_ended_for_all(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        one, two = await site.replica(), await site.replica()
        decoder = (await one.chat(SAID[0])).headers["x-conserve-decoder"]
        await settled()
        assert (await two.request("GET", "/v1/conversations/c")).json()["decoder"] == decoder
        assert (await two.request("DELETE", "/v1/conversations/c")).status == 200
        await two.until(lambda: len(site.workers[decoder].closed_sessions) == 1)
        await one.until(lambda: one.service.brain.dispatcher.num_conversations == 0)
        for each in (one, two):
            assert (await each.request("GET", "/v1/conversations/c")).status == 404
            assert (await each.request("DELETE", "/v1/conversations/c")).status == 404
        assert why(await one.chat(*SAID[:3])) == "first_turn"


async def test_without_redis_a_conversation_that_others_may_know_is_not_called_unknown(
    tmp_path: Path,
) -> None:
    async with a_site(tmp_path) as site:
        one, two = await site.replica(), await site.replica()
        await one.chat(SAID[0])
        await two.chat("mine", name="own")
        await settled()
        at_control = await two.request("GET", "/v1/conversations/c", two.service.control_port)
        assert (at_control.status, at_control.json()["turns"]) == (200, 1)
        await site.redis.kill()
        await one.until(lambda: is_degraded(one) and is_degraded(two))
        ports = (two.service.port, two.service.control_port)
        asked = [("GET", ports[0]), ("DELETE", ports[0]), ("GET", ports[1])]
        for name in ("c", "nobody-s"):
            for method, port in asked:
                answer = await two.request(method, f"/v1/conversations/{name}", port)
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                assert answer.json()["error"]["code"] == "state_unavailable"
        assert (await two.request("GET", "/v1/conversations/own")).json()["turns"] == 1
        assert (await one.request("GET", "/v1/conversations/c")).status == 200
        assert (await two.request("DELETE", "/v1/conversations/own")).status == 200
        await site.redis.start()
        await one.until(lambda: not (is_degraded(one) or is_degraded(two)))
        await settled()
        assert (await two.request("GET", "/v1/conversations/c")).json()["turns"] == 1
        assert (await two.request("GET", "/v1/conversations/nobody-s")).status == 404


async def test_tenants_stay_apart_whichever_replica_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    mine, theirs = (
        {"authorization": f"Bearer {new_key(file, name)}"} for name in ("mine", "theirs")
    )
    auth = AuthSettings(keys_file=str(file))
    async with a_site(tmp_path) as site:
        one, two = await site.replica(auth=auth), await site.replica(auth=auth)
        named = {"x-conversation-id": "c"}
        await one.post("/v1/chat/completions", chat_body(SAID[0]), mine | named)
        unnamed = await one.post("/v1/chat/completions", chat_body("no name"), mine)
        label = unnamed.headers["x-conversation-id"]
        await settled()

        async def seen_by_others() -> set[tuple[int, bytes]]:
            answers = [
                await two.request(method, f"/v1/conversations/{name}", headers=theirs)
                for name in ("c", label, "never-was")
                for method in ("GET", "DELETE")
            ]
            return {(answer.status, answer.body) for answer in answers}

        ((status, _),) = await seen_by_others()
        assert status == 404
        body = chat_body("no name", "the answer", "more")
        other = await two.post("/v1/chat/completions", body, theirs)
        assert (why(other), other.headers["x-conversation-id"] == label) == ("first_turn", False)
        other = await two.post("/v1/chat/completions", chat_body(*SAID[:3]), theirs | named)
        assert why(other) == "first_turn"
        assert (
            await two.request("DELETE", "/v1/conversations/c", headers=theirs)
        ).status == 200  # its own
        found = await two.post("/v1/chat/completions", body, mine)
        assert (why(found), found.headers["x-conversation-id"]) == ("pinned", label)
        went_on = await two.post("/v1/chat/completions", chat_body(*SAID[:3]), mine | named)
        assert why(went_on) == "pinned"
        await site.redis.kill()
        await one.until(lambda: is_degraded(one) and is_degraded(two))
        ((status, _),) = await seen_by_others()
        assert status == 503


async def test_a_moved_pin_is_seen_by_the_others(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        one, two = await site.replica(), await site.replica()
        decoder = (await one.chat(SAID[0])).headers["x-conserve-decoder"]
        await settled()
        await site.workers[decoder].stop()
        moved = await two.chat(*SAID[:3])
        assert why(moved) == "decoder_lost"
        await settled()
        last = await one.chat(*SAID)
        assert why(last) == "pinned"
        assert last.headers["x-conserve-decoder"] == moved.headers["x-conserve-decoder"]


async def test_a_pin_leaves_a_busy_decoder_for_all_or_for_none(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        one, two = await site.replica(), await site.replica()
        decoder = (await one.chat(SAID[0])).headers["x-conserve-decoder"]
        faults = {name: site.workers[name].faults for name in ("d0", "d1", "d2")}
        faults[decoder].queue_is_full = True
        for name in faults.keys() - {decoder}:
            faults[name].statuses.append(503)
        assert (await one.chat(*SAID[:3])).status == 503
        await settled()
        faults[decoder].queue_is_full = False
        stayed = await two.chat(*SAID[:3])
        assert (why(stayed), stayed.headers["x-conserve-decoder"]) == ("pinned", decoder)
        await settled()
        faults[decoder].queue_is_full = True
        moved = await two.chat(*SAID[:3])
        assert why(moved) == "decoder_busy"
        await settled()
        last = await one.chat(*SAID)
        assert why(last) == "pinned"
        assert last.headers["x-conserve-decoder"] == moved.headers["x-conserve-decoder"] != decoder


async def test_without_redis_turns_are_served_and_it_is_said_and_squared_afterwards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_site(tmp_path) as site:
        one, two = await site.replica(), await site.replica()
        known = await one.chat(SAID[0])
        await settled()
        await site.redis.kill()
        await one.until(lambda: is_degraded(one) and is_degraded(two))
        again = await one.chat(*SAID[:3])
        assert why(again) == "pinned"
        assert why(await one.chat("new", name="n")) == "first_turn"
        health = (await one.request("GET", "/health")).json()
        assert health["status"] == "degraded"
        assert "Redis is gone" in health["state"]
        metrics = await one.request("GET", "/metrics", one.service.control_port)
        assert b"conserve_router_state_degraded 1.0" in metrics.body
        await site.redis.start()
        await one.until(lambda: not (is_degraded(one) or is_degraded(two)))
        await asyncio.sleep(0.1)
        last = await two.chat(*SAID)
        assert why(last) == "pinned"
        assert last.headers["x-conserve-decoder"] == known.headers["x-conserve-decoder"]
        assert why(await two.chat("new", "the answer", "more", name="n")) == "pinned"
        assert "state" not in (await one.request("GET", "/health")).json()
    events = [event for record in caplog.records if (event := getattr(record, "event", None))]
    assert (events.count("redis_gone"), events.count("redis_back")) == (2, 2)


async def test_redis_that_hangs_delays_turns_for_a_second_at_most(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        one = await site.replica()
        assert why(await one.chat(SAID[0])) == "first_turn"
        site.redis.send(signal.SIGSTOP)
        began = time.monotonic()
        answers = await asyncio.gather(
            one.chat(*SAID[:3]), *(one.chat("new", name=f"n{n}") for n in range(20))
        )
        assert {answer.status for answer in answers} == {200}
        assert time.monotonic() - began < 3.0
        assert is_degraded(one)
        began = time.monotonic()
        assert why(await one.chat("new", name="m")) == "first_turn"
        assert time.monotonic() - began < 0.5
        site.redis.send(signal.SIGCONT)
        await one.until(lambda: not is_degraded(one))


async def test_a_replica_that_stood_still_does_not_take_redis_for_gone(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        one, two = await site.replica(), await site.replica()
        first = await one.chat(SAID[0])
        await settled()
        site.redis.send(signal.SIGSTOP)
        turn = asyncio.ensure_future(two.chat(*SAID[:3]))
        await asyncio.sleep(0.1)
        site.redis.send(signal.SIGCONT)  # answers at once; here nobody is there to read it
        time.sleep(1.2)
        assert why(await turn) == "pinned"
        assert (await turn).headers["x-conserve-decoder"] == first.headers["x-conserve-decoder"]
        kept = [replica.service.memory for replica in (one, two)]
        assert [each.num_failures for each in kept if each is not None] == [0, 0]
