"""A workload is what its source asks for."""

from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.ids import ConversationId
from conserve_sglang.traces import Source, draw, write_conversation
from conserve_sglang.workload import ConversationPlan, TurnPlan

SAMPLES = Path(__file__).parent / "samples"


def gaps_of(source: Source) -> list[float]:
    times = [plan.arrived_at_s for plan in draw(source).conversations]
    return [after - before for before, after in pairwise(times)]


def test_arrivals_are_poisson_or_in_bursts_at_the_rate_asked_for() -> None:
    poisson = gaps_of(Source(synthetic=4000, rate_per_s=2.0, max_turns=1))
    bursts = gaps_of(Source(synthetic=4000, rate_per_s=2.0, cv=3.0, max_turns=1))
    assert fmean(poisson) == pytest.approx(0.5, rel=0.05)
    assert pstdev(poisson) / fmean(poisson) == pytest.approx(1.0, rel=0.05)
    assert fmean(bursts) == pytest.approx(0.5, rel=0.15)
    assert pstdev(bursts) / fmean(bursts) == pytest.approx(3.0, rel=0.15)


def test_load_makes_arrivals_denser_whatever_they_are() -> None:
    once, twice = (
        gaps_of(Source(synthetic=10, rate_per_s=2.0, load=load, max_turns=1)) for load in (1, 2)
    )
    assert [gap / 2 for gap in once] == pytest.approx(twice)
    own, faster = (
        gaps_of(Source(trace=SAMPLES / "conversations.jsonl", load=load)) for load in (1, 3)
    )
    assert (own, faster) == ([1.5], [0.5])


def test_arrivals_of_another_trace_keep_their_gaps_and_begin_anew() -> None:
    arrivals = SAMPLES / "azure.csv"  # two requests, 0.5 s apart
    own = gaps_of(Source(synthetic=4, arrivals_of=arrivals, max_turns=1))
    assert own == pytest.approx([0.5, 0.5, 0.5])
    at_rate = gaps_of(Source(synthetic=4, arrivals_of=arrivals, rate_per_s=10.0, max_turns=1))
    assert at_rate == pytest.approx([0.1, 0.1, 0.1])


def test_lengths_gaps_and_turns_are_scaled_and_cut() -> None:
    trace = SAMPLES / "claude_code.csv"
    cut = draw(Source(trace=trace, rate_per_s=1.0, window_tokens=1200, gap_factor=0.5))
    assert [len(plan.turns) for plan in cut.conversations] == [1, 1]
    assert cut.scaling == ""
    scaled = draw(
        Source(trace=trace, rate_per_s=1.0, window_tokens=1200, fitting=1.0, gap_factor=0.5)
    )
    assert [len(plan.turns) for plan in scaled.conversations] == [3, 1]
    assert [turn.gap_s for turn in scaled.conversations[0].turns] == [0.0, 2.0, 0.0]
    assert "100% of the conversations fit whole in 1,200 tokens" in scaled.scaling
    assert [line.number for line in scaled.bad_lines] == [5]


def test_those_that_do_not_fit_are_counted() -> None:
    drawn = draw(Source(trace=SAMPLES / "claude_code.csv", rate_per_s=1.0, window_tokens=500))
    assert (len(drawn.conversations), drawn.num_left_out) == (1, 1)


def test_a_trace_of_single_arrivals_has_no_gaps_to_take() -> None:
    with pytest.raises(ConfigError, match="need some spread"):
        draw(Source(synthetic=4, arrivals_of=SAMPLES / "conserve_lengths.csv"))


def test_bad_lines_of_the_trace_that_arrivals_come_from_are_named(tmp_path: Path) -> None:
    arrivals = tmp_path / "arrivals.csv"
    arrivals.write_text((SAMPLES / "azure.csv").read_text() + "gibberish\n")
    num_known = len(draw(Source(synthetic=4, arrivals_of=SAMPLES / "azure.csv")).bad_lines)
    drawn = draw(Source(synthetic=4, arrivals_of=arrivals))
    assert len(drawn.bad_lines) == num_known + 1
    assert {line.file for line in drawn.bad_lines} == {"arrivals.csv"}


def own(tmp_path: Path, shared_tokens: int, gap_s: float = 0.0) -> Path:
    path = tmp_path / "own.jsonl"
    turns = (
        TurnPlan(input_tokens=9, output_tokens=5),
        TurnPlan(input_tokens=20, output_tokens=5, shared_tokens=shared_tokens, gap_s=gap_s),
    )
    plan = ConversationPlan(conversation_id=ConversationId("a"), turns=turns)
    path.write_text(write_conversation(plan))
    return path


def test_it_is_told_where_no_later_turn_shares_anything(tmp_path: Path) -> None:
    (note,) = draw(Source(trace=own(tmp_path, 0))).notes
    assert "no later turn shares anything" in note
    assert "shared_tokens" in note
    assert draw(Source(trace=own(tmp_path, 14))).notes == ()
    assert draw(Source(trace=own(tmp_path, 0), max_turns=1)).notes == ()


def test_gaps_that_are_none_of_tools_are_told() -> None:
    trace = SAMPLES / "mooncake.jsonl"
    assert "from arrival to arrival" in draw(Source(trace=trace)).notes[0]
    assert draw(Source(trace=trace, gap_factor=0.0)).notes == ()


def test_a_clock_that_is_too_coarse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="go on until 1e\\+10 s"):
        draw(Source(trace=own(tmp_path, 14, gap_s=1e10)))
    draw(Source(trace=own(tmp_path, 14, gap_s=1.7e9)))  # as large as today's Unix time


def test_a_window_into_which_nothing_fits_is_refused() -> None:
    with pytest.raises(ConfigError, match="--window 5: of 2 conversations none"):
        draw(Source(trace=SAMPLES / "claude_code.csv", rate_per_s=1.0, window_tokens=5))
