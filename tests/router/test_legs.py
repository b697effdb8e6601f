"""What a leg passes on of an answer, however its bytes come."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.router.legs import DecodeLeg
from conserve_sglang.router.payload import Endpoint
from conserve_sglang.router.sent import Sent
from conserve_sglang.workers.usage import Usage
from tests.fakes.patching import replaces_a_part

pytestmark = replaces_a_part

EVENT = b'data: {"choices":[{"index":0}]}\n\n'
USAGE = b'{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,"prompt_tokens_details":null}'
CALLS = b'data: {"choices":[{"finish_reason":"tool_calls"}],"usage":null}\n\n'
COUNTED = b'data: {"choices":[],"usage":' + USAGE + b"}\n\n"
DONE = b"data: [DONE]\n\n"


class Owner:
    """A turn that notes the bytes it is to pass on."""

    def __init__(self) -> None:
        self.passed: list[tuple[bytes, bool]] = []
        self.usages: list[Usage | None] = []

    def began(self, *_: object) -> None:
        pass

    def answered(self, usage: Usage | None) -> None:
        self.usages.append(usage)

    def pass_on(self, data: bytes, is_last: bool) -> None:
        self.passed.append((data, is_last))


class Exchange:
    def __init__(self) -> None:
        self.num_follows = 0

    def follow_stream(self) -> None:
        self.num_follows += 1


def a_leg(
    *, is_stream: bool, hides_usage: bool = False, sent: Sent | None = None
) -> tuple[Any, Owner, Exchange]:
    owner, exchange = Owner(), Exchange()
    leg: Any = DecodeLeg(owner, WorkerId("d0"), is_stream, hides_usage, sent)  # type: ignore[arg-type]
    leg.exchange = exchange
    leg.on_head(200, [])
    return leg, owner, exchange


def test_stream_is_followed_from_its_first_event_on() -> None:
    leg, owner, exchange = a_leg(is_stream=True)
    leg.on_body(EVENT[:9], False)
    assert exchange.num_follows == 0
    leg.on_body(EVENT[9:], False)
    leg.on_body(EVENT, False)
    assert exchange.num_follows == 1
    assert owner.passed == [(EVENT, False)] * 2


def test_what_is_whole_at_once_is_not_followed() -> None:
    for is_stream in (True, False):
        leg, _, exchange = a_leg(is_stream=is_stream)
        leg.on_body(EVENT, True)
        assert exchange.num_follows == 0


@pytest.mark.parametrize("hides_usage", [True, False])
@pytest.mark.parametrize("is_told", [True, False])
@given(num_events=st.integers(0, 40), cuts=st.lists(st.integers(0, 2000), max_size=60))
def test_stream_ends_with_its_last_event_wherever_it_is_cut(
    is_told: bool, hides_usage: bool, num_events: int, cuts: list[int]
) -> None:
    sent = Sent(Endpoint.CHAT) if is_told else None
    leg, owner, _ = a_leg(is_stream=True, hides_usage=hides_usage, sent=sent)
    events = [EVENT] * num_events + [CALLS, COUNTED]
    answer = b"".join(events) + DONE
    if is_told:
        answer = b"".join(event[:-1] + b":=5\n\n" for event in events) + DONE
    edges = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    for start, end in pairwise(edges):
        leg.on_body(answer[start:end], False)
    leg.on_body(b"", True)  # the end of the chunks, in a segment of its own
    shown = events[:-1] if hides_usage else events
    assert b"".join(data for data, _ in owner.passed) == b"".join(shown) + DONE
    assert [is_last for _, is_last in owner.passed] == [False] * (len(owner.passed) - 1) + [True]
    assert owner.usages == [Usage(prompt_tokens=7, output_tokens=2, cached_tokens=0)]
    assert leg.has_called_tools
    assert leg.is_between_events
    if sent is not None:
        assert sent.told == [b"5"] * len(events)
        assert sent.is_begun


def test_end_of_a_long_answer_is_known_by_its_last_pieces() -> None:
    leg, owner, _ = a_leg(is_stream=False)
    piece = b"x" * 3_000
    body = b'{"choices":[{"text":"' + piece * 3_000 + b'"}],"usage":' + USAGE + b"}"
    for at in range(0, len(body), 10_000):
        leg.on_body(body[at : at + 10_000], at + 10_000 >= len(body))
        assert sum(map(len, leg._ends)) < 100_000
    assert b"".join(data for data, _ in owner.passed) == body
    assert owner.usages == [Usage(prompt_tokens=7, output_tokens=2, cached_tokens=0)]
