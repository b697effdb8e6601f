"""conserve-sglang trace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import RunCli

SAMPLES = Path(__file__).parents[1] / "traces" / "samples"


def test_inspect_shows_the_shape_and_names_bad_lines(run_cli: RunCli) -> None:
    ran = run_cli("trace", "inspect", SAMPLES / "claude_code.csv")
    assert (ran.code, ran.err) == (0, "")
    assert "turn 1 holds 28.7% of the uncached prefill tokens" in ran.out
    assert "50.0% of later turns append 2,048 tokens or more" in ran.out
    assert "1 of 5 lines could not be used" in ran.out
    assert "line 5: a turn needs at least one token" in ran.out


def test_inspect_as_json(run_cli: RunCli) -> None:
    document = json.loads(run_cli("trace", "inspect", "--json", SAMPLES / "azure.csv").out)
    assert [line["number"] for line in document["bad_lines"]] == [4, 5]
    assert document["shape"]["num_turns"] == 2
    assert document["shape"]["append_tokens"] is None


def test_an_unknown_format_is_exit_code_2(run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("hello\n")
    ran = run_cli("trace", "inspect", path)
    assert ran.code == 2
    assert "in no format known here" in ran.err


def test_inspect_draws_every_quantity(run_cli: RunCli) -> None:
    out = run_cli("trace", "inspect", SAMPLES / "claude_code.csv").out
    for title in ("turns of a conversation", "prompt of turn 1, tokens", "append, tokens",
                  "output, tokens", "tool gap, s"):  # fmt: skip
        assert f"{title}  " in out
    assert "████████████████████████" in out
    assert "3 turns" not in out


def test_thin_ends_of_a_drawing_are_drawn_together(run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    line = '{"conversation_id": "%s", "turns": [{"input_tokens": %d, "output_tokens": 5}]}\n'
    lengths = [1, 30, *[300] * 997, 70_000, 400_000]
    path.write_text("".join(line % (f"c{n}", length) for n, length in enumerate(lengths)))
    out = run_cli("trace", "inspect", path).out
    assert "below 200  ▏" in out
    assert "200 - 500  ████████████████████████   99.6%" in out
    assert "500 and more  ▏" in out
    assert "1k - 2k" not in out


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_inspect_draws_a_figure(run_cli: RunCli, tmp_path: Path, suffix: str) -> None:
    figures = [tmp_path / f"{number}{suffix}" for number in (1, 2)]
    for figure in figures:
        ran = run_cli("trace", "inspect", SAMPLES / "claude_code.csv", "--figure", figure)
        assert (ran.code, ran.err) == (0, "")
        assert f"figure: {figure}" in ran.out.replace("\n", "")
    assert figures[0].read_bytes() == figures[1].read_bytes()
    if suffix == ".svg":
        text = figures[0].read_text(encoding="utf-8")
        assert "claude_code.csv: 2 conversations, 4 turns" in text
        assert "append, tokens" in text
    else:
        assert figures[0].read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_cannot_be_is_exit_code_2(run_cli: RunCli, tmp_path: Path) -> None:
    sample = SAMPLES / "claude_code.csv"
    for name, message in {"x.gif": "ends in one of .svg", "no/x.svg": "cannot be written"}.items():
        ran = run_cli("trace", "inspect", sample, "--figure", tmp_path / name)
        assert ran.code == 2
        assert message in ran.err


def test_a_file_with_nothing_usable_is_exit_code_2_and_says_why(
    run_cli: RunCli, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"conversation_id": "a", "turns": []}\n')
    ran = run_cli("trace", "inspect", path)
    assert ran.code == 2
    assert "1 of 1 lines could not be used" in ran.out
    assert "line 1: conversation a has no turns" in ran.out
    assert "nothing in it can be used" in ran.err
    document = run_cli("trace", "inspect", "--json", path)
    assert document.code == 2
    assert json.loads(document.out)["shape"]["num_turns"] == 0


def test_sessions_are_counted_in_requests(run_cli: RunCli) -> None:
    out = run_cli("trace", "inspect", SAMPLES / "session.json").out
    assert "3 of 8 requests could not be used" in out
    assert "line 1: main, request 4: t: 11.0 is before the previous request's" in out


def test_text_without_a_tokenizer_is_exit_code_2(run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]')
    ran = run_cli("trace", "inspect", path)
    assert ran.code == 2
    assert "--tokenizer" in ran.err
    ran = run_cli("trace", "inspect", path, "--tokenizer", tmp_path)
    assert "no such tokenizer file" in ran.err


def test_a_trace_is_read_from_standard_input() -> None:
    command = Path(sys.executable).parent / "conserve-sglang"
    with (SAMPLES / "azure.csv").open("rb") as given:
        words = [str(command), "trace", "inspect", "-"]
        done = subprocess.run(words, stdin=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "standard input: 2 conversations" in done.stdout


def test_what_a_file_does_not_tell_is_said_instead_of_0(run_cli: RunCli, tmp_path: Path) -> None:
    path = SAMPLES / "conserve_lengths.csv"
    out = run_cli("trace", "inspect", path, "--figure", tmp_path / "f.svg").out
    assert "no arrival times in this file" in out
    assert "no tool gaps in this file" in out
    assert "tool gap, s" not in out + (tmp_path / "f.svg").read_text()
    shape = json.loads(run_cli("trace", "inspect", path, "--json").out)["shape"]
    assert [shape[name] for name in ("span_s", "gap_s", "gap_over_60_s_share")] == [None] * 3
    out = run_cli("trace", "inspect", SAMPLES / "azure.csv").out
    assert "no conversation has a later turn: no appends, no tool gaps" in out
    assert "of later turns" not in out
    shape = json.loads(run_cli("trace", "inspect", SAMPLES / "azure.csv", "--json").out)["shape"]
    assert shape["large_append_share"] is None
    assert shape["span_s"] == 0.5


def test_gaps_from_arrival_to_arrival_are_told(run_cli: RunCli) -> None:
    out = " ".join(run_cli("trace", "inspect", SAMPLES / "mooncake.jsonl").out.split())
    assert "tool gaps of this file: from arrival to arrival, too long by the time that" in out
    document = json.loads(run_cli("trace", "inspect", SAMPLES / "mooncake.jsonl", "--json").out)
    assert "from arrival to arrival" in document["notes"][0]


def test_turns_that_share_nothing_are_warned_of(run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    turn = '{"input_tokens": 10, "output_tokens": 5}'
    path.write_text(f'{{"conversation_id": "a", "turns": [{turn}, {turn}]}}\n')
    out = " ".join(run_cli("trace", "inspect", path).out.split())
    assert "1 conversation " in out
    assert "no later turn shares anything with the turn before" in out


def test_other_files_of_a_folder_are_named(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("You may.\n")
    (tmp_path / "a.csv").write_bytes((SAMPLES / "azure.csv").read_bytes())
    ran = run_cli("trace", "inspect", tmp_path)
    assert ran.code == 0
    assert "not read: LICENSE: is in no format known here" in ran.out
    assert json.loads(run_cli("trace", "inspect", tmp_path, "--json").out)["not_read"]
