"""Changes in words, how large they are, and what is said of their being the smallest."""

import pytest

from conserve_sglang.planning.remedy import (
    Change,
    Proof,
    Remedy,
    Tried,
    size_of,
    smallest,
)
from conserve_sglang.planning.rows import Limit


def a_change(limit: Limit, needed: float) -> Change:
    return Change(limit=limit, tier="", given=100.0, needed=needed, relative=needed / 100 - 1)


def told(*all_changes: tuple[Change, ...]) -> list[tuple[Change, ...]]:
    return [one.changes for one in smallest(Remedy(changes=changes) for changes in all_changes)]


def test_a_change_of_more_limits_that_is_larger_too_is_not_told() -> None:
    ttfet, power = a_change(Limit.TTFET, 120.0), a_change(Limit.PEAK_W, 110.0)
    more = a_change(Limit.TTFET, 130.0)
    assert told((ttfet, power), (more,), (ttfet,)) == [(ttfet,)]
    assert told((more,), (a_change(Limit.TTFET, 101.0), power))[-1] == (more,)


@pytest.mark.parametrize(
    ("limit", "needed", "enough"),
    [
        (Limit.TTFET, 23.36101, 23.37),
        (Limit.TTFET, 23.36, 23.36),
        (Limit.TBT, 0.0012340001, 0.001235),
        (Limit.PEAK_W, 266.0, 266.0),
        (Limit.PEAK_W, 12345.6, 12350.0),
        (Limit.LOAD, 0.99558, 0.9955),
    ],
)
def test_what_is_printed_is_enough(limit: Limit, needed: float, enough: float) -> None:
    change = a_change(limit, needed)
    assert change.enough == pytest.approx(enough, rel=1e-9)
    assert f"{enough:.4g}" in change.text


def more_gpus(**tiers: int) -> tuple[Change, ...]:
    return tuple(
        Change(limit=Limit.GPUS, tier=name, given=4.0, needed=4.0 + num, relative=num / 8)
        for name, num in tiers.items()
    )


def test_gpus_count_alike_whatever_their_tiers() -> None:
    assert size_of(more_gpus(a40=2, l4=2)) == pytest.approx(size_of(more_gpus(a40=4)))
    assert size_of(more_gpus(a40=1, l4=2)) < size_of(more_gpus(l4=4))


@pytest.mark.parametrize(
    ("tried", "num", "words"),
    [
        (Tried.ALL, 7, "the smallest: 2 GPUs fewer was tried and fails, on every fleet within"),
        (Tried.NEAR, 7, "the smallest found: 2 GPUs fewer was tried and fails, on the 7 fleets"),
        (Tried.PART, 1, "conversations was reached, after 1 fleet with 2 GPUs fewer, which fail"),
        (Tried.ALL, 0, "the smallest: no fleet within reach could do with 2 GPUs fewer"),
    ],
)
def test_only_what_was_tried_everywhere_is_called_the_smallest(
    tried: Tried, num: int, words: str
) -> None:
    proof = Proof(tried=tried, num_tried=num, step=2.0, most=9000)
    assert words in Remedy(changes=more_gpus(a40=135), proof=proof).evidence


def test_what_was_not_tried_is_not_called_the_smallest() -> None:
    said = Remedy(changes=(a_change(Limit.LOAD, 60.0),)).evidence
    assert said == "enough; not shown to be the smallest: less was not tried"
