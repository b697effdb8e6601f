"""conserve-sglang trace."""

import json
from pathlib import Path

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
