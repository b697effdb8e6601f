"""What is known of a stream when its decoder is lost."""

import json

from conserve_sglang.core.continuation import Continuation
from conserve_sglang.router.payload import Endpoint
from conserve_sglang.router.sent import Sent


def read(member: bytes | None) -> Continuation:
    assert member is not None
    assert member.endswith(b",")
    continuation = Continuation.from_rid(json.loads(b"{" + member[:-1] + b"}")["rid"])
    assert continuation is not None
    return continuation


def native(ids: list[int], finish: object = None, answer_id: str = "a") -> bytes:
    meta = {"id": answer_id, "finish_reason": finish}
    event = {"text": "x", "output_ids": ids, "meta_info": meta}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def test_openai_stream_is_known_by_what_it_told() -> None:
    sent = Sent(Endpoint.CHAT)
    sent.take(b'data: {"id":"a1","object":"x","created":17,"choices":[]}\n\n')
    sent.take(b'data: {"id":"other","created":18}\n\n')
    sent.told += [b"1", b"", b"2,3;4", b""]
    continuation = read(sent.continuation())
    assert (continuation.answer_id, continuation.created) == ("a1", 17)
    assert continuation.num_events == 4
    assert continuation.steps == ((1,), (2, 3), (4,))
    assert sent.num_tokens == 4


def test_stream_that_told_nothing_cannot_go_on() -> None:
    sent = Sent(Endpoint.COMPLETION)
    sent.take(b'data: {"id":"a1","created":17,"choices":[]}\n\n')
    assert sent.continuation() is None
    sent.told += [b"", b""]
    assert sent.continuation() is None


def test_native_stream_is_known_by_its_last_event() -> None:
    sent = Sent(Endpoint.GENERATE)
    sent.take(native([1]) + native([1, 2]))
    sent.take(native([1, 2, 3]))
    continuation = read(sent.continuation())
    assert continuation.token_ids == [1, 2, 3]
    assert sent.num_tokens == 3
    assert not sent.is_complete()


def test_native_stream_with_a_finish_lacks_only_its_end() -> None:
    sent = Sent(Endpoint.GENERATE)
    sent.take(native([1, 2], {"type": "length"}))
    assert sent.is_complete()


def test_what_is_no_native_event_cannot_go_on() -> None:
    for data in (b"", b"data: {}\n\n", b'data: {"output_ids": 3}\n\n', b"data: {\xff\n\n"):
        sent = Sent(Endpoint.GENERATE)
        sent.take(data)
        assert sent.continuation() is None
        assert not sent.is_complete()


def test_ids_that_would_not_travel_are_refused() -> None:
    sent = Sent(Endpoint.GENERATE)
    sent.take(native([1], answer_id="a b"))
    assert sent.continuation() is None
