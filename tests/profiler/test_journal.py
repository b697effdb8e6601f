"""Points survive an interruption; points of something else are not mixed in."""

from pathlib import Path

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.profiler.journal import Journal
from conserve_sglang.profiler.outcome import Outcome
from conserve_sglang.profiler.point import Point

SETUP = {"gpu": "A40", "model": "m"}
OUTCOMES = [
    Outcome(
        point=Point(sweep="decode", batch=4, kv_tokens=4096),
        took_s=1.5,
        seconds=0.01,
        rel_ci=0.02,
        num_repeats=8,
        watts=120.0,
        kv_tokens=4200,
    ),
    Outcome(point=Point(sweep="prefill", new_tokens=64), took_s=0.5, failure="refused: \u00e9"),
]


def written(path: Path) -> Journal:
    journal = Journal(path, SETUP)
    journal.begin(55.5)
    for outcome in OUTCOMES:
        journal.add(outcome)
    return journal


def test_reads_what_it_wrote(tmp_path: Path) -> None:
    written(tmp_path / "new" / "j")
    again = Journal(tmp_path / "new" / "j", SETUP)
    assert again.outcomes == OUTCOMES
    assert (again.idle_w, again.num_found) == (55.5, 2)


def test_first_handoffs_are_kept_beside_the_points(tmp_path: Path) -> None:
    journal = written(tmp_path / "j")
    journal.add_first_handoff(0.05)
    journal.add_first_handoff(0.0)
    again = Journal(tmp_path / "j", SETUP)
    again.add_first_handoff(0.06)
    assert again.outcomes == OUTCOMES
    assert again.num_found == 2
    assert Journal(tmp_path / "j", SETUP).first_handoffs_s == [0.05, 0.0, 0.06]


def test_a_line_cut_off_is_dropped_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    path.write_bytes(path.read_bytes()[:-10])
    again = Journal(path, SETUP)
    assert again.outcomes == OUTCOMES[:1]
    again.begin(None)
    again.add(OUTCOMES[1])
    assert Journal(path, SETUP).outcomes == OUTCOMES


def test_another_setup_is_refused_with_what_differs(tmp_path: Path) -> None:
    written(tmp_path / "j")
    with pytest.raises(ConfigError, match=r"(?s)gpu: A40 there, L4 now.*--fresh"):
        Journal(tmp_path / "j", {**SETUP, "gpu": "L4"})


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("hello\n")
    with pytest.raises(ConfigError, match="no journal"):
        Journal(tmp_path / "j", SETUP)
