"""What travels between router and servers when an answer goes on elsewhere."""

import pytest

from conserve_sglang.core.continuation import Continuation, Handoff, continuation_rid, told_step


def test_continuation_is_read_as_it_was_written() -> None:
    rid = continuation_rid(answer_id="abc-1", created=1700000000, num_events=4, steps="7;8,9;10")
    continuation = Continuation.from_rid(rid)
    assert continuation == Continuation(
        answer_id="abc-1", created=1700000000, num_events=4, steps=((7,), (8, 9), (10,))
    )
    assert continuation.token_ids == [7, 8, 9, 10]


@pytest.mark.parametrize(
    "rid",
    [None, "", "5fd1", ["a", "b"], "conserve-continue", "conserve-continue events=1 created=2"],
)
def test_other_request_ids_are_none(rid: object) -> None:
    assert Continuation.from_rid(rid) is None


def test_step_of_several_tokens_is_one_step() -> None:
    assert told_step([5]) == "5"
    assert told_step([5, 6]) == "5,6"


@pytest.mark.parametrize("limit", [None, 128])
def test_handoff_is_read_as_it_was_written(limit: int | None) -> None:
    handoff = Handoff(num_sent=3, last_id=99, max_new_tokens=limit)
    assert Handoff.from_routing_key(handoff.to_routing_key()) == handoff


@pytest.mark.parametrize("key", [None, "", "conserve-local max_uncached=1 min_cached=0", "mine"])
def test_other_routing_keys_are_no_handoff(key: str | None) -> None:
    assert Handoff.from_routing_key(key) is None
