from itertools import islice

from conserve_sglang.workers.bootstrap import prefiller_fields, rooms


def test_rooms_are_63_bits_never_zero_and_never_twice() -> None:
    some = list(islice(rooms(), 20_000))
    assert len(set(some)) == len(some)
    assert all(0 < room < 2**63 for room in some)


def test_zero_is_left_out() -> None:
    seed = (0).to_bytes(8, "big") + (5).to_bytes(8, "big")
    assert next(rooms(seed)) == 5


def test_two_routers_do_not_share_rooms() -> None:
    assert not set(islice(rooms(), 1000)) & set(islice(rooms(), 1000))


def test_prefiller_fields_are_members_up_to_the_room() -> None:
    fields = prefiller_fields('10.0.0.1"', 8998)
    assert fields == b'"bootstrap_host":"10.0.0.1\\"","bootstrap_port":8998,"bootstrap_room":'
