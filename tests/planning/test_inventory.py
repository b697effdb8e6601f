"""Workers find their GPUs exactly when the limits by size say that they fit."""

import itertools
from dataclasses import replace

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.planning.inventory import GpuTier, Host, lacking_roles, placed


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


@pytest.mark.parametrize(
    ("hosts", "sizes", "used"),
    [
        ((8, 4), {1: 6}, {"h0"}),
        ((2, 8), {1: 2}, {"h0"}),
        ((2, 8), {1: 3}, {"h1"}),
        ((4, 3, 8), {1: 11}, {"h1", "h2"}),
        ((3, 3, 4), {2: 2}, {"h2"}),
        ((3, 3, 3), {2: 2, 1: 2}, {"h0", "h1"}),
    ],
)
def test_workers_stand_on_as_few_hosts_as_will_do(
    hosts: tuple[int, ...], sizes: dict[int, int], used: set[str]
) -> None:
    places = placed(a_tier(*hosts), sizes)
    assert len({host for own in places.values() for host, _ in own}) == len(used)
    assert {host for own in places.values() for host, _ in own} == used or len(set(hosts)) == 1


def test_no_fewer_hosts_would_do() -> None:
    for hosts in [(4, 4, 2), (3, 5, 1), (1, 2, 6)]:
        for ones, twos in itertools.product(range(6), range(3)):
            sizes = {1: ones, 2: twos}
            tier = a_tier(*hosts)
            if not fits(tier, sizes) or not ones + twos:
                continue
            num_used = len({host for own in placed(tier, sizes).values() for host, _ in own})
            subsets = itertools.combinations(tier.hosts, num_used - 1)
            assert not any(fits(replace(tier, hosts=hosts_), sizes) for hosts_ in subsets)


def test_roles_that_leave_nothing_to_serve_are_told() -> None:
    prefill, decode = (
        replace(a_tier(2), name=role.value, roles=(role,)) for role in (Role.PREFILL, Role.DECODE)
    )
    assert lacking_roles([prefill, decode]) is None
    assert lacking_roles([a_tier(1)]) is None
    assert lacking_roles([decode, replace(prefill, roles=())]) == (
        "roles are needed that serve, mixed, or prefill and decode; allowed are decode: decode,"
        " prefill: none"
    )


def test_no_gpu_is_given_twice_and_a_worker_stays_on_one_host() -> None:
    places = placed(a_tier(4, 4, 2), {4: 1, 2: 2, 1: 2})
    given = [(host, gpu) for own in places.values() for host, gpus in own for gpu in gpus]
    assert len(given) == len(set(given)) == 10
    assert {size: len(own) for size, own in places.items()} == {4: 1, 2: 2, 1: 2}
    assert all(len(gpus) == size for size, own in places.items() for _, gpus in own)


def test_too_many_workers_are_an_error_that_names_the_tier() -> None:
    with pytest.raises(ValueError, match="tier a: no host has 4 GPUs left"):
        placed(a_tier(3, 3), {4: 1})
