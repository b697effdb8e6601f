"""The table of faults on fake workers: in every row, every turn is answered once and whole."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from bench.faults.__main__ import problems, run_fast, with_recorded
from bench.faults.run import Count, longest_wait_s
from bench.faults.talk import Script, Seen, difference
from bench.faults.worker import Pace

PACE = Pace(prefill_s=0.1, transfer_s=0.1, local_prefill_s=0.1, token_s=0.01, num_words=25)
SCRIPT = Script(num_conversations=3, num_turns=3, first_chars=240, later_chars=60, max_tokens=64)


@pytest.mark.parametrize(
    ("only", "num_rows"),
    [
        ("decoder killed", 4),
        ("decoder frozen", 3),
        ("decoder slow", 3),
        ("decoder drained", 3),
        ("decoder busy", 1),
        ("p0 killed", 3),
        ("full", 1),
        ("router killed", 3),
    ],
)
def test_every_turn_is_answered_once(tmp_path: Path, only: str, num_rows: int) -> None:
    counts = asyncio.run(run_fast(tmp_path, only, PACE, SCRIPT))
    assert len(counts) == num_rows
    # A busy machine may let a fault come late; what it must not do is harm a turn.
    for count in counts:
        assert count.breaches(clients_may_ask_again=count.victim == "router") == []
    assert all(count.turns >= 9 for count in counts)


def a_count(**found: float) -> Count:
    numbers = dict.fromkeys(
        (
            "retried", "continued", "moved", "asked_again", "error_events", "lost",
            "missing_tokens", "repeated_tokens",
        ),
        0,
    )  # fmt: skip
    whole = {"turns": 9, "answered": 9, "recovery_s": 0.1, **numbers, **found}
    return Count(victim="decoder", fault="killed", **whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "found",
    [
        {"lost": 1},
        {"error_events": 1},
        {"missing_tokens": 2},
        {"repeated_tokens": 2},
        {"answered": 8},
        {"asked_again": 1},
        {"was_late": True},
    ],
)
def test_each_breach_of_the_rule_is_a_problem(found: dict[str, float]) -> None:
    assert problems([a_count()]) == []
    assert len(problems([a_count(**found)])) == 1


def test_part_of_the_rows_is_added_to_a_record_of_the_same_revision() -> None:
    machine = {"revision": "e369a9a", "date": "2026-11-21"}
    old, new = a_count(retried=1), a_count(retried=2)
    other = replace(old, victim="router")
    rows = [count.as_record() for count in (old, other)]
    record = {"machine": machine, "rows": rows}
    assert with_recorded(record, machine, [new]) == [other, new]
    assert with_recorded(record, {**machine, "revision": "0000000"}, [new]) == [new]


def test_missing_and_repeated_tokens_are_told_apart() -> None:
    assert difference("a b c d", "a b c d", by_words=True) == (0, 0)
    assert difference("a b c d", "a b d", by_words=True) == (1, 0)
    assert difference("a b c d", "a b b c d", by_words=True) == (0, 1)
    assert difference("a b c d", "a b", by_words=True) == (2, 0)
    assert difference("abcd", "abxd", by_words=False) == (1, 1)


def test_longest_wait_counts_from_the_fault() -> None:
    seen = Seen(0, 1, heard_at_s=[1.0, 2.0, 7.0, 7.5], asked_at_s=0.0)
    assert longest_wait_s([seen], 4.0) == 3.0
    assert longest_wait_s([seen], 8.0) == 0.0
