"""The tag behind a routing key, beside the marks that may stand there."""

import pytest

from conserve_sglang.core.continuation import Handoff
from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.core.turn_tag import tag_of, tagged, with_tag_of

LIMITS = LocalLimits(max_uncached=512, min_cached=90)
HANDOFF = Handoff(num_sent=3, last_id=7, max_new_tokens=None)


def test_tag_is_read_back_from_behind_any_mark() -> None:
    for mark in (None, LIMITS.to_routing_key(), HANDOFF.to_routing_key()):
        assert tag_of(tagged(mark, "conv-1f", 3)) == ("conv-1f", 3)


def test_marks_are_read_the_same_with_a_tag_behind_them() -> None:
    assert LocalLimits.from_routing_key(tagged(LIMITS.to_routing_key(), "conv-1f", 3)) == LIMITS
    assert Handoff.from_routing_key(tagged(HANDOFF.to_routing_key(), "conv-1f", 3)) == HANDOFF


def test_tag_alone_is_no_mark() -> None:
    assert LocalLimits.from_routing_key(tagged(None, "conv-1f", 1)) is None


def test_tag_goes_over_to_another_mark() -> None:
    key = with_tag_of(HANDOFF.to_routing_key(), tagged(None, "conv-1f", 2))
    assert (Handoff.from_routing_key(key), tag_of(key)) == (HANDOFF, ("conv-1f", 2))
    assert with_tag_of("a", None) == "a"


@pytest.mark.parametrize(
    "key", [None, "", "of=c:1", "x of=c", "x of=c:one", "x of=a b:1", "x of=c:1 "]
)
def test_anything_else_tells_no_turn(key: str | None) -> None:
    assert tag_of(key) is None
