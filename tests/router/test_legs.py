"""What a leg asks of the connection that its answer comes on."""

from typing import Any

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.router.legs import DecodeLeg

EVENT = b'data: {"choices":[{"index":0}]}\n\n'


class Owner:
    """A turn that notes the bytes it is to pass on."""

    def __init__(self) -> None:
        self.passed: list[tuple[bytes, bool]] = []

    def began(self, *_: object) -> None:
        pass

    def answered(self, usage: object) -> None:
        pass

    def pass_on(self, data: bytes, is_last: bool) -> None:
        self.passed.append((data, is_last))


class Exchange:
    def __init__(self) -> None:
        self.num_follows = 0

    def follow_stream(self) -> None:
        self.num_follows += 1


def a_leg(*, is_stream: bool) -> tuple[Any, Owner, Exchange]:
    owner, exchange = Owner(), Exchange()
    leg: Any = DecodeLeg(owner, WorkerId("d0"), is_stream, False, None)  # type: ignore[arg-type]
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
