"""What is read out of one streamed request of a batch."""

import pytest

from conserve_sglang.profiler.measure_decode import steady_part
from conserve_sglang.profiler.talk import Meta, Reply

STEP_S = 0.01
EPOCH = 1.8e9  # the scheduler's clock is another one than the client's


def reply(
    ticks: list[tuple[float, int]],
    *,
    prefilled_s: float | None = None,
    ended_s: float | None = None,
) -> Reply:
    meta = Meta(
        prefill_finished_time=None if prefilled_s is None else EPOCH + prefilled_s,
        request_finished_ts=None if ended_s is None else EPOCH + ended_s,
    )
    return Reply(sent_at_s=0.0, done_at_s=ended_s or 0.0, meta=meta, ticks=tuple(ticks))


def steps(count: int, first_s: float = 1.0, step_s: float = STEP_S) -> list[tuple[float, int]]:
    return [(first_s + n * step_s, n + 1) for n in range(count)]


def test_the_step_of_an_even_series() -> None:
    probe = reply(steps(101), prefilled_s=1.0, ended_s=2.0)
    others = [reply([], prefilled_s=0.9, ended_s=2.1)] * 3
    found = steady_part(probe, others, prompt_tokens=4 * 1000)
    assert found is not None
    assert found.step_s == pytest.approx(STEP_S)
    assert found.kv_tokens == pytest.approx(4 * (1000 + 51))
    assert found.begin_s == pytest.approx(1.0)
    assert found.end_s == pytest.approx(2.0)
    assert found.clock == "scheduler"


def test_what_is_before_the_last_prefill_and_after_the_first_end_does_not_count() -> None:
    early = steps(30, step_s=0.05)
    middle = [(early[-1][0] + n * STEP_S, 30 + n) for n in range(1, 61)]
    late = [(middle[-1][0] + n * 0.002, 90 + n) for n in range(1, 31)]
    probe = reply(early + middle + late, prefilled_s=1.0, ended_s=9.0)
    others = [
        reply([], prefilled_s=early[-1][0], ended_s=9.0),
        reply([], prefilled_s=0.5, ended_s=middle[-1][0]),
    ]
    found = steady_part(probe, others, prompt_tokens=3)
    assert found is not None
    assert found.step_s == pytest.approx(STEP_S)
    assert found.begin_s == pytest.approx(early[-1][0], abs=1.1 * STEP_S)
    assert found.end_s == pytest.approx(middle[-1][0], abs=1.1 * STEP_S)


def test_tokens_that_came_together_count_as_so_many_steps() -> None:
    """A busy client reads several events at once: the pace is the same."""
    probe = reply([tick for tick in steps(100) if tick[1] % 3 == 1], prefilled_s=1.0, ended_s=2.0)
    found = steady_part(probe, [], prompt_tokens=10)
    assert found is not None
    assert found.step_s == pytest.approx(STEP_S)


def test_a_slow_start_is_left_out_without_stamps() -> None:
    slow = steps(15, step_s=0.06)
    probe = reply(slow + [(slow[-1][0] + n * STEP_S, 15 + n) for n in range(1, 90)])
    found = steady_part(probe, [reply([])], prompt_tokens=10)
    assert found is not None
    assert found.step_s == pytest.approx(STEP_S)
    assert found.clock == "client"
    assert found.begin_s >= slow[-1][0] - 1e-9


@pytest.mark.parametrize("others_end_s", [0.5, 1.1])
def test_a_batch_that_was_never_whole_long_enough_is_no_round(others_end_s: float) -> None:
    probe = reply(steps(100), prefilled_s=1.0, ended_s=2.0)
    others = [reply([], prefilled_s=0.9, ended_s=others_end_s)]
    assert steady_part(probe, others, prompt_tokens=10) is None


def test_too_few_tokens_are_no_round() -> None:
    assert steady_part(reply(steps(10), prefilled_s=1.0, ended_s=2.0), [], prompt_tokens=1) is None
