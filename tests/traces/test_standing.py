"""Lengths are scaled by one factor, however many conversations are drawn."""

from conserve_sglang.traces import Source, draw


def test_the_factor_does_not_depend_on_how_many_are_drawn_or_the_seed() -> None:
    said = set()
    for count, seed in ((40, 0), (40, 1), (400, 2)):
        source = Source(
            synthetic=count, seed=seed, rate_per_s=1.0, window_tokens=8192, fitting=0.95
        )
        said.add(draw(source).scaling.split(",")[0])
    assert len(said) == 1
    assert said.pop().startswith("all lengths times 0.4")
