"""The demo's energy figures, from what a router would tell."""

import pytest
from rich.console import Console

from bench.demo.energy import energy_json, energy_table
from bench.demo.play import PlayedConversation, PlayedTurn
from conserve_sglang.core.latency import TurnTimes


def a_turn() -> PlayedTurn:
    times = TurnTimes(arrived_at_s=0.0, token_at_s=(1.0, 2.0))
    return PlayedTurn("", [], times, 90, 0, 10, None, None, None)


def a_conversation(joules: float, origin: str = "modelled") -> PlayedConversation:
    energy = {
        "joules": joules,
        "phases": {"prefill": joules / 4, "decode": 3 * joules / 4},
        "origin": origin,
        "split": "own",
        "is_final": True,
    }
    return PlayedConversation(1, [a_turn(), a_turn()], "c", energy)


def test_joules_are_told_per_conversation_turn_and_token() -> None:
    told = energy_json([a_conversation(30.0), a_conversation(10.0)])
    assert told is not None
    assert (told["j_per_conversation"], told["j_per_turn"]) == (20.0, 10.0)
    assert (told["j_per_output_token"], told["j_per_counted_token"]) == (1.0, 0.1)


def test_table_says_of_each_row_what_its_joules_are() -> None:
    table = energy_table(
        {"conserve": [a_conversation(30.0)], "other": [a_conversation(9, "measured")]}
    )
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    assert [
        line.split()[-1] for line in lines if line.lstrip().startswith(("conserve", "other"))
    ] == [
        "modelled",
        "measured",
    ]


@pytest.mark.parametrize("without", [None, 0.0])
def test_nothing_told_is_no_table(without: float | None) -> None:
    silent = a_conversation(0.0)
    if without is None:
        silent.energy = None
    assert energy_table({"conserve": [silent]}) is None
