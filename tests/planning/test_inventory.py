"""Workers find their GPUs exactly when the limits by size say that they fit."""

import itertools

import pytest

from conserve_sglang.planning.inventory import GpuTier, Host, placed


def a_tier(*sizes: int) -> GpuTier:
    return GpuTier(
        name="a",
        gpu="A40",
        hosts=tuple(
            Host(name=f"h{number}", gpu_ids=tuple(range(size))) for number, size in enumerate(sizes)
        ),
    )


def fits(tier: GpuTier, sizes: dict[int, int]) -> bool:
    return all(
        sum(size * count for size, count in sizes.items() if size >= limit.min_tp) <= limit.gpus
        for limit in tier.limits()
    )


def test_what_the_limits_allow_can_be_placed_and_nothing_else() -> None:
    seen = set()
    for hosts in [(8,), (4, 4), (3, 5), (1, 2, 6), (7, 1)]:
        tier = a_tier(*hosts)
        for ones, twos, fours, eights in itertools.product(range(9), range(5), range(3), range(2)):
            sizes = {1: ones, 2: twos, 4: fours, 8: eights}
            try:
                places = placed(tier, sizes)
            except ValueError:
                places = None
            assert (places is not None) == fits(tier, sizes), (hosts, sizes)
            seen.add(places is not None)
    assert seen == {True, False}


def test_no_gpu_is_given_twice_and_a_worker_stays_on_one_host() -> None:
    places = placed(a_tier(4, 4, 2), {4: 1, 2: 2, 1: 2})
    given = [(host, gpu) for own in places.values() for host, gpus in own for gpu in gpus]
    assert len(given) == len(set(given)) == 10
    assert {size: len(own) for size, own in places.items()} == {4: 1, 2: 2, 1: 2}
    assert all(len(gpus) == size for size, own in places.items() for _, gpus in own)


def test_too_many_workers_are_an_error_that_names_the_tier() -> None:
    with pytest.raises(ValueError, match="tier a: no host has 4 GPUs left"):
        placed(a_tier(3, 3), {4: 1})
