"""What workers are told of whose turn a request is, and when they are not."""

from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.core.tier import EnergySettings
from conserve_sglang.core.turn_tag import tag_of
from tests.fakes.router_cluster import Cluster, a_cluster
from tests.fakes.sglang_worker import Seen


def keys_at(cluster: Cluster, name: str) -> list[str | None]:
    def key(seen: Seen) -> str | None:
        return seen.headers.get("x-smg-routing-key") or seen.body.get("routing_key")

    return [key(seen) for seen in cluster[name].seen]


async def test_where_energy_is_read_both_workers_are_told_conversation_and_turn() -> None:
    modes = {"p0": "prefill", "d0": "decode"}
    async with a_cluster(modes, energy=EnergySettings()) as cluster:
        await cluster.chat("hello " * 100)
        await cluster.chat("hello " * 100, "yes", "more")
        (first,) = keys_at(cluster, "p0")
        opening, tail = keys_at(cluster, "d0")
    tag = tag_of(first)
    assert tag is not None
    assert tag[1] == 1
    assert tag_of(opening) == tag
    assert tag_of(tail) == (tag[0], 2)
    assert LocalLimits.from_routing_key(tail) is not None


async def test_tag_goes_in_the_body_of_sglangs_own_endpoint() -> None:
    modes = {"p0": "prefill", "d0": "decode"}
    async with a_cluster(modes, energy=EnergySettings()) as cluster:
        body = {"input_ids": [65] * 300}
        await cluster.post("/generate", body, {"x-conversation-id": "c"})
        assert [tag_of(key) is not None for key in keys_at(cluster, "p0")] == [True]
        assert cluster["d0"].seen[0].body["input_ids"] == body["input_ids"]


async def test_colocated_turns_are_told_too() -> None:
    async with a_cluster({"m0": "null"}, policy="colocated", energy=EnergySettings()) as cluster:
        assert (await cluster.chat("hello")).status == 200
        assert [tag_of(key) is not None for key in keys_at(cluster, "m0")] == [True]


async def test_nothing_is_told_where_energy_is_not_read() -> None:
    async with a_cluster({"p0": "prefill", "d0": "decode"}) as cluster:
        await cluster.chat("hello " * 100)
        assert keys_at(cluster, "p0") == [None]
