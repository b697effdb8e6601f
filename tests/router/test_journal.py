"""Why each turn ran where it ran: from a running router, and from bare events."""

from typing import Any

from conserve_sglang.core.ids import ConversationId, TenantId, TurnId, WorkerId
from conserve_sglang.core.tier import ObserveSettings
from conserve_sglang.dispatch import (
    Command,
    Event,
    FailureCause,
    FirstToken,
    SendTurn,
    TurnArrived,
    TurnDone,
    TurnFailed,
    TurnInterrupted,
)
from conserve_sglang.policy.api import PlacementReason
from conserve_sglang.router.conversations import Conversation
from conserve_sglang.router.journal import Journal
from tests.fakes.router_cluster import Cluster, a_cluster

KEY = ConversationId("conv-1")


async def told(cluster: Cluster, name: str = "c") -> dict[str, Any]:
    answer = await cluster.request("GET", f"/v1/conversations/{name}")
    body: dict[str, Any] = answer.json()
    return body


async def test_placements_are_told_in_order_and_in_words() -> None:
    async with a_cluster(
        modes={"p0": "prefill", "d0": "decode"}, params={"max_local_append_tokens": 100}
    ) as cluster:
        await cluster.chat("a" * 200)
        await cluster.chat("a" * 200, "the answer", "b")
        await cluster.chat("a" * 200, "the answer", "b", "the answer", "c" * 300)
        body = await told(cluster)
        assert body["placements_left_out"] == 0
        first, second, third = body["placements"]
        assert [each["turn"] for each in body["placements"]] == [1, 2, 3]
        assert (first["decoder"], first["prefiller"], first["reason"]) == ("d0", "p0", "first_turn")
        assert first["because"] == (
            "the conversation is new: p0 prefilled the prompt and its KV moved to d0"
        )
        assert first["arrived_at"].startswith("20")
        assert (second["prefiller"], second["reason"]) == (None, "pinned")
        assert second["tokens"]["cached"] > 200
        assert second["tokens"]["output"] == len("the answer")
        assert third["reason"] == "large_append"
        assert 0 <= third["queued_s"] <= third["total_s"]
        assert all(each["state"] == "answered" for each in body["placements"])
        assert "failed_attempts" not in first


async def test_attempts_that_failed_say_why() -> None:
    async with a_cluster() as cluster:
        cluster["d0"].faults.statuses = [500]
        await cluster.chat("hello")
        (turn,) = (await told(cluster))["placements"]
        assert turn["attempts"] == 2
        assert turn["failed_attempts"] == [
            {
                "decoder": "d0",
                "prefiller": "p0",
                "cause": "decoder_failed",
                "because": "the decoder did not answer",
            }
        ]
        assert turn["decoder"] == "d1"


async def test_prefiller_that_failed_is_named_and_moved_no_kv() -> None:
    modes = {"p0": "prefill", "p1": "prefill", "d0": "decode"}
    async with a_cluster(modes=modes) as cluster:
        cluster["p0"].faults.statuses = [500]
        await cluster.chat("hello")
        body = await told(cluster)
        (turn,) = body["placements"]
        (failed,) = turn["failed_attempts"]
        assert (failed["prefiller"], failed["decoder"]) == ("p0", "d0")
        assert (failed["cause"], turn["prefiller"]) == ("prefiller_failed", "p1")
        assert body["kv_transfers"] == 1
        metrics = await cluster.request("GET", "/metrics", cluster.service.control_port)
        assert b"conserve_router_kv_transfers_total 1.0" in metrics.body


async def test_an_open_turn_is_told_too() -> None:
    async with a_cluster() as cluster:
        cluster["d0"].faults.event_delay_s = 0.3
        client = await cluster.connect()
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        client.ask("/v1/chat/completions", body, {"x-conversation-id": "c"})
        await client.head()
        (turn,) = (await told(cluster))["placements"]
        assert turn["state"] == "answering"
        assert turn["total_s"] is None
        assert turn["tokens"]["prompt_estimated"] > 0


async def test_only_the_first_and_the_last_turns_are_kept() -> None:
    async with a_cluster(observe=ObserveSettings(explained_turns=2)) as cluster:
        for _ in range(7):
            await cluster.chat("hello")
        body = await told(cluster)
        assert [each["turn"] for each in body["placements"]] == [1, 2, 6, 7]
        assert body["placements_left_out"] == 3


async def test_nothing_is_kept_when_none_is_asked_for() -> None:
    async with a_cluster(observe=ObserveSettings(explained_turns=0)) as cluster:
        await cluster.chat("hello")
        body = await told(cluster)
        assert body["placements"] == []
        assert body["placements_left_out"] == 1


def send(turn: int, decoder: str, *, attempt: int = 1, index: int = 1) -> SendTurn:
    return SendTurn(
        turn_id=TurnId(turn), conversation_id=KEY, decoder=WorkerId(decoder), prefiller=None,
        limits=None, reason=PlacementReason.PINNED, keeps_kv=True, attempt=attempt,
        turn_index=index,
    )  # fmt: skip


def played(most: int, *steps: tuple[Event, list[Command]]) -> tuple[Journal, Conversation]:
    conversation = Conversation(KEY, TenantId("t"), b"c")
    journal = Journal(lambda key: conversation, lambda: 0.0, most)
    for n, (event, commands) in enumerate(steps):
        journal.note(event, commands, float(n))
    return journal, conversation


def test_times_failures_and_an_interruption_survive_packing() -> None:
    turn = TurnId(1)
    journal, conversation = played(
        3,
        (TurnArrived(turn_id=turn, conversation_id=KEY, input_tokens=9), []),
        (FirstToken(turn_id=TurnId(99)), [send(1, "d0")]),
        (
            TurnFailed(turn_id=turn, cause=FailureCause.PREFIX_MISSING),
            [send(1, "d1", attempt=2)],
        ),
        (FirstToken(turn_id=turn), []),
        (TurnInterrupted(turn_id=turn, output_tokens=3), [send(1, "d2", attempt=3)]),
        (TurnDone(turn_id=turn, prompt_tokens=9, output_tokens=5, cached_tokens=7), []),
    )
    (told_of,) = journal.told(conversation)
    assert (told_of["queued_s"], told_of["first_byte_s"], told_of["total_s"]) == (1.0, 3.0, 5.0)
    assert [each["cause"] for each in told_of["failed_attempts"]] == [
        "prefix_missing",
        "interrupted",
    ]
    assert [each["decoder"] for each in told_of["failed_attempts"]] == ["d0", "d1"]
    assert told_of["decoder"] == "d2"
    assert told_of["tokens"] == {"prompt": 9, "cached": 7, "output": 5}


def test_a_turn_costs_tens_of_bytes() -> None:
    steps: list[tuple[Event, list[Command]]] = []
    for n in range(12):
        turn = TurnId(n)
        steps += [
            (
                TurnArrived(turn_id=turn, conversation_id=KEY, input_tokens=9),
                [send(n, "d0", index=n + 1)],
            ),
            (TurnDone(turn_id=turn, prompt_tokens=9, output_tokens=5, cached_tokens=7), []),
        ]
    journal, conversation = played(6, *steps)
    assert len(conversation.past_turns) == 12 * 34
    assert conversation.failed_attempts == b""
    assert [each["turn"] for each in journal.told(conversation)] == list(range(1, 13))


def test_failures_go_with_the_turns_they_are_of() -> None:
    steps: list[tuple[Event, list[Command]]] = []
    for n in range(8):
        turn = TurnId(n)
        arrived = TurnArrived(turn_id=turn, conversation_id=KEY, input_tokens=9)
        steps.append((arrived, [send(n, "d0", index=n + 1)]))
        for attempt in range(2, 3 + n):
            failed = TurnFailed(turn_id=turn, cause=FailureCause.PREFILLER_FAILED)
            steps.append((failed, [send(n, "d1", index=n + 1, attempt=attempt)]))
        done = TurnDone(turn_id=turn, prompt_tokens=9, output_tokens=5, cached_tokens=7)
        steps.append((done, []))
    journal, conversation = played(2, *steps)
    kept = [
        (each["turn"], len(each["failed_attempts"]), each["attempts"])
        for each in journal.told(conversation)
    ]
    assert kept == [(1, 1, 2), (2, 2, 3), (7, 3, 8), (8, 3, 9)]
    assert len(conversation.failed_attempts) == 9 * 9


def test_what_is_too_large_to_keep_is_the_largest_that_can_be() -> None:
    turn = TurnId(1)
    conversation = Conversation(KEY, TenantId("t"), b"c")
    journal = Journal(lambda key: conversation, lambda: 0.0, 1)
    arrived = TurnArrived(turn_id=turn, conversation_id=KEY, input_tokens=9)
    journal.note(arrived, [send(1, "d0", attempt=300)], 0.0)
    done = TurnDone(turn_id=turn, prompt_tokens=1 << 40, output_tokens=-1, cached_tokens=7)
    journal.note(done, [], 1e6)
    (told_of,) = journal.told(conversation)
    assert told_of["tokens"] == {"prompt": 0xFFFF_FFFF, "cached": 7, "output": 0}
    assert (told_of["attempts"], told_of["total_s"]) == (255, 65_000.0)


def test_seconds_are_told_to_three_digits_and_turns_in_order() -> None:
    conversation = Conversation(KEY, TenantId("t"), b"c")
    journal = Journal(lambda key: conversation, lambda: 0.0, 6)
    for n, at_s in enumerate((100.0, 100.001, 100.002), start=1):
        arrived = TurnArrived(turn_id=TurnId(n), conversation_id=KEY, input_tokens=9)
        journal.note(arrived, [send(n, "d0", index=n)], at_s)
    for n, at_s in ((3, 100.0154), (1, 112.3456), (2, 120.0)):
        done = TurnDone(turn_id=TurnId(n), prompt_tokens=9, output_tokens=5, cached_tokens=7)
        journal.note(done, [], at_s)
    turns = journal.told(conversation)
    assert [each["turn"] for each in turns] == [1, 2, 3]
    assert [each["total_s"] for each in turns] == [12.3, 20.0, 0.0134]
