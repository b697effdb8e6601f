"""The router in several processes: real ones, before fake workers."""

import asyncio
import os
import signal
from collections import Counter
from dataclasses import replace

from conserve_sglang.core.ids import WorkerId
from tests.fakes.router_cluster import Answer
from tests.fakes.router_family import Family, a_family
from tests.fakes.sglang_worker import FakeWorker, Rendezvous


async def one_turn_each(family: Family, num_clients: int, name: str | None) -> list[Answer]:
    """The same first turn of so many clients at once, each over its own connection."""
    return await asyncio.gather(*(family.chat("hello", name=name) for _ in range(num_clients)))


async def counted_by_each_front(family: Family, num_turns: int) -> list[int]:
    def counts() -> list[int]:
        return [
            sum((seat.metrics or {"turns": {}})["turns"].values())
            for seat in family.many.hub.seats()
        ]

    await family.until(lambda: sum(counts()) == num_turns)
    return counts()


async def test_fronts_share_one_port_one_truth_and_one_set_of_counts() -> None:
    async with a_family() as family:
        answers = await one_turn_each(family, 24, "shared")
        assert {answer.status for answer in answers} == {200}
        # One pin, whoever asked: KV moved once, everybody else waited for it and stayed there.
        assert len({answer.headers["x-conserve-decoder"] for answer in answers}) == 1
        reasons = Counter(answer.headers["x-conserve-reason"] for answer in answers)
        assert reasons == {"first_turn": 1, "pinned": 23}
        assert {answer.headers["x-conversation-id"] for answer in answers} == {"shared"}
        assert len(family["p0"].turns) == 1
        assert min(await counted_by_each_front(family, 24)) > 0
        for port in (family.many.port, family.many.control_port):
            about = await family.request("GET", "/v1/conversations/shared", port)
            assert about.json()["turns"] == 24
            assert about.json()["kv_transfers"] == 1
        metrics = await family.request("GET", "/metrics", family.many.control_port)
        assert b'conserve_router_turns_total{outcome="answered"} 24.0' in metrics.body
        assert (await family.request("GET", "/health")).json()["status"] == "ok"
        ended = await family.request("DELETE", "/v1/conversations/shared")
        assert ended.json()["deleted"] is True
        assert (await family.request("GET", "/v1/conversations/shared")).status == 404
        assert family.many.brain.dispatcher.num_conversations == 0


async def test_history_is_found_whichever_front_was_asked_before() -> None:
    async with a_family() as family:
        first = await asyncio.gather(
            *(family.chat(f"hello {number}", name=None) for number in range(12))
        )
        await family.until(lambda: len(family.many.brain.conversations.history) == 12)
        second = await asyncio.gather(
            *(
                family.chat(f"hello {number}", "the answer", "more", name=None)
                for number in range(12)
            )
        )
        named = [answer.headers["x-conversation-id"] for answer in first]
        assert [answer.headers["x-conversation-id"] for answer in second] == named
        assert {answer.headers["x-conserve-reason"] for answer in second} == {"pinned"}
        prompt = {"text": "once upon a time", "sampling_params": {}}
        said = (await family.post("/generate", prompt)).json()["text"]
        await family.until(lambda: len(family.many.brain.conversations.history) == 13)
        prompt["text"] = f"once upon a time{said} and then"
        again = await family.post("/generate", prompt)
        assert again.headers["x-conserve-reason"] == "pinned"


async def test_front_that_dies_takes_its_turns_along_and_no_others() -> None:
    async with a_family() as family:
        family["d0"].faults.event_delay_s = family["d1"].faults.event_delay_s = 0.2
        clients = [await family.connect() for _ in range(16)]
        body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
        for number, client in enumerate(clients):
            client.ask("/v1/chat/completions", body, {"x-conversation-id": f"c{number}"})
        await family.until(lambda: family.num_open_turns == 16)
        victim, other = family.many.hub.seats()
        num_left = len(other.open)
        assert victim.open
        assert num_left
        pids = family.many.family.pids()
        await family.until(lambda: len(family.many.hub.seats()) == 2)
        os.kill(pids[0], signal.SIGKILL)
        heard = await asyncio.gather(
            *(client.answer() for client in clients), return_exceptions=True
        )
        whole = [each for each in heard if isinstance(each, Answer) and each.is_whole]
        assert len(whole) in (num_left, 16 - num_left)
        await family.until(lambda: family.num_open_turns == 0)
        loads = family.many.brain.dispatcher.worker_loads()
        assert {load.reserved_tokens for load in loads} == {0}
        await family.until(lambda: len(family.many.hub.seats()) == 2)
        await family.until(
            lambda: all(seat.is_ready.is_set() for seat in family.many.hub.seats()), 20
        )
        answers = await one_turn_each(family, 12, "c0")
        assert {answer.status for answer in answers} == {200}
        assert set(family.many.family.pids()).isdisjoint(pids[:1])


async def test_lost_worker_is_known_to_every_front() -> None:
    async with a_family() as family:
        await one_turn_each(family, 8, "c")
        await family["d0"].stop()
        answers = await asyncio.gather(
            *(family.chat("hello", "the answer", "more", name="c") for _ in range(8))
        )
        assert {answer.status for answer in answers} == {200}
        assert {answer.headers["x-conserve-decoder"] for answer in answers} == {"d1"}


async def test_fronts_count_tokens_at_workers_that_joined_later() -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    async with a_family() as family, FakeWorker("decode", Rendezvous()).serve() as newcomer:
        fleet = family.many.fleet
        there = fleet.worker(WorkerId("d0")).plan
        fleet.add(replace(there, worker_id=WorkerId("d2"), port=newcomer.port))
        await family.until_met("d2")
        for name in ("p0", "d0", "d1"):
            fleet.remove(fleet.worker(WorkerId(name)))
        for worker in family.workers.values():
            await worker.stop()  # or a front that asked them would be answered
        for _ in range(8):  # some at each front
            counted = await family.post("/v1/messages/count_tokens", asked)
            assert (counted.status, counted.json()) == (200, {"input_tokens": 5})


async def test_open_answers_are_finished_before_the_end() -> None:
    async with a_family() as family:
        family["d0"].faults.event_delay_s = family["d1"].faults.event_delay_s = 0.05
        clients = [await family.connect() for _ in range(8)]
        body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
        for client in clients:
            client.ask("/v1/chat/completions", body)
        await family.until(lambda: family.num_open_turns == 8)
        stopping = asyncio.get_running_loop().create_task(family.many.stop())
        answers = await asyncio.gather(*(client.answer() for client in clients))
        assert all(answer.is_whole and answer.events[-1] == "[DONE]" for answer in answers)
        await stopping
        assert family.num_open_turns == 0
        assert not family.many.family.pids()


async def test_stream_goes_on_elsewhere_whichever_front_serves_it() -> None:
    async with a_family() as family:
        family["d0"].answer = family["d1"].answer = "one two three four"
        family["d0"].faults.cut_after_events = 2
        answers = await asyncio.gather(
            *(family.chat("hello", name=f"c{number}", stream=True) for number in range(8))
        )
        for answer in answers:
            assert answer.events[-1] == "[DONE]"
            choices = [choice for event in answer.events[:-1] for choice in event["choices"]]
            text = "".join(choice["delta"].get("content") or "" for choice in choices)
            assert text == "one two three four"
        assert any(answer.headers["x-conserve-decoder"] == "d0" for answer in answers)
