"""The length of a text prompt: derived from bytes, and corrected by what workers count."""

from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.router.estimate import Counted, LengthEstimate
from tests.fakes.router_cluster import Cluster


async def play(cluster: Cluster, opening: str, append: str) -> None:
    """Six turns of one conversation."""
    said = [opening]
    for _ in range(6):
        assert (await cluster.chat(*said)).status == 200
        said += ["the answer", append]


async def test_error_of_the_ratio_does_not_make_a_small_append_large(cluster: Cluster) -> None:
    cluster.service.brain.estimate.bytes_per_token = 0.8  # 20 k tokens look like 25 k
    await play(cluster, "x" * 20_000, "y" * 50)
    assert len(cluster["p0"].turns) == 1


async def test_error_of_the_ratio_does_not_make_a_large_append_small(cluster: Cluster) -> None:
    cluster.service.brain.estimate.bytes_per_token = 2.0  # 20 k tokens look like 10 k
    await play(cluster, "x" * 20_000, "y" * 6_000)
    assert len(cluster["p0"].turns) == 6
    assert cluster.service.door.metrics.num_kv_misses == 0
    assert sum(cluster.service.door.metrics.failures.values()) == 0  # no decoder had to refuse


async def test_shortened_history_is_not_taken_for_the_long_one(cluster: Cluster) -> None:
    await cluster.chat("x" * 20_000, "the answer", "y" * 20_000)
    answer = await cluster.chat("x" * 1_000)
    assert answer.status == 200
    assert len(cluster["p0"].turns) == 1  # small enough for the decoder, whatever it still holds


@given(st.integers(0, 10**7), st.integers(1, 10**7), st.integers(1, 10**6), st.floats(0.1, 10))
def test_estimate_is_at_least_one_and_grows_with_the_bytes(
    num_bytes: int, last_bytes: int, last_tokens: int, ratio: float
) -> None:
    estimate = LengthEstimate()
    estimate.bytes_per_token = ratio
    last = Counted(last_bytes, last_tokens)
    tokens = estimate.tokens_after(num_bytes, last)
    assert tokens >= 1
    assert tokens <= estimate.tokens_after(num_bytes + 1, last)
    assert (tokens >= last_tokens) == (num_bytes >= last_bytes) or tokens == last_tokens == 1
