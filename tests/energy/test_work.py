"""Batches of a phase log, weighed with and without a profile."""

import pytest

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.phase_log import Batch, Phase, Work
from conserve_sglang.energy.work import Predictor, mean_batch, span_of
from tests.energy.profiles import a_profile

D0 = WorkerId("d-0")


def decode(*contexts: int, steps: int = 10, seconds: float = 0.2) -> Batch:
    works = tuple(Work(f"c{n}", 1, Phase.DECODE, steps, kv) for n, kv in enumerate(contexts))
    return Batch(0.0, seconds, steps, works)


def prefill(*lengths: tuple[int, int], seconds: float = 0.5) -> Batch:
    works = tuple(
        Work(f"c{n}", 1, Phase.PREFILL, new, held) for n, (new, held) in enumerate(lengths)
    )
    return Batch(0.0, seconds, 1, works)


def shares(batch: Batch, predictor: Predictor | None) -> list[float]:
    weights = [part.weight for part in span_of(D0, batch, predictor).parts]
    return [weight / sum(weights) for weight in weights]


def test_without_a_profile_new_tokens_are_the_weights_and_nothing_is_predicted() -> None:
    assert shares(prefill((100, 0), (300, 900)), None) == [0.25, 0.75]
    assert shares(decode(100, 5000), None) == [0.5, 0.5]
    assert span_of(D0, decode(100), None).joules is None


def test_energy_predicted_is_the_profiles_power_times_the_time_observed() -> None:
    predictor = Predictor(a_profile())
    assert span_of(D0, prefill((1000, 0), seconds=0.5), predictor).joules == pytest.approx(150)
    assert span_of(D0, decode(1000, seconds=0.2), predictor).joules == pytest.approx(20)


def test_with_a_profile_a_long_context_costs_more_of_the_step() -> None:
    # a_profile: 10 ms + 1 us per KV token a step; two requests share the 10 ms.
    short, long = shares(decode(1000, 3000), Predictor(a_profile()))
    assert short == pytest.approx((5 + 1) / 14, rel=1e-3)
    assert long == pytest.approx((5 + 3) / 14, rel=1e-3)


def test_with_a_profile_prefills_weigh_as_they_would_take_alone() -> None:
    # a_profile: 100 us per new token, whatever is cached.
    assert shares(prefill((1000, 0), (3000, 0)), Predictor(a_profile())) == pytest.approx(
        [0.25, 0.75]
    )


def test_beyond_the_profile_it_goes_on_and_counts() -> None:
    predictor = Predictor(a_profile())
    span = span_of(D0, prefill((100_000, 0)), predictor)
    assert span.joules is not None
    assert predictor.num_outside > 0


def test_profile_without_watts_weighs_and_predicts_nothing() -> None:
    predictor = Predictor(a_profile(has_watts=False))
    assert span_of(D0, decode(1000, 3000), predictor).joules is None
    assert shares(decode(1000, 3000), predictor)[1] > 0.5


def test_mean_batch_is_that_of_the_steps() -> None:
    works = (Work("a", 1, Phase.DECODE, 10, 500), Work("b", 1, Phase.DECODE, 5, 100))
    assert mean_batch(Batch(0, 1, 10, works)) == (2, 550)


def test_empty_batch_is_a_span_of_nobody() -> None:
    assert span_of(D0, Batch(0, 1, 1, ()), Predictor(a_profile())).parts == ()
