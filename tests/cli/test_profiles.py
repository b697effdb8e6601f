"""conserve-sglang profiles."""

import json
from pathlib import Path

from conserve_sglang.profiles import save_profile, shipped_profiles
from tests.profiles.builders import a_profile

from .conftest import RunCli


def test_the_list_marks_what_is_estimated(run_cli: RunCli) -> None:
    ran = run_cli("profiles")
    assert (ran.code, ran.err) == (0, "")
    rows = {line.split()[0]: line for line in ran.out.splitlines()[1:-1]}
    assert set(rows) == set(shipped_profiles())
    assert "published  estimated" in rows["a40-qwen3-0.6b-300w"]
    assert "estimated  estimated" in rows["h100-qwen3-8b"]
    heads = json.loads(run_cli("profiles", "--json").out)
    assert [head["name"] for head in heads] == list(shipped_profiles())
    assert heads[0]["provenance"]["kind"] == "estimated"
    assert heads[0]["is_estimated"] is True


def test_a_profile_is_shown_with_its_source_and_its_own_error(run_cli: RunCli) -> None:
    ran = run_cli("profiles", "show", "a40-qwen3-0.6b-300w")
    assert (ran.code, ran.err) == (0, "")
    assert "times published" in ran.out
    assert "2606.01839" in ran.out
    assert "watts estimated" in ran.out
    assert "621.7 ms" in ran.out
    assert "leave-one-out" in ran.out
    document = json.loads(run_cli("profiles", "show", "a40-qwen3-0.6b-300w", "--json").out)
    assert document["leave_one_out"]["prefill"]["num_points"] == len(document["prefill"])
    assert document["prefill"][0]["seconds"] == 0.0284


def test_a_file_is_shown_and_an_unknown_name_is_an_error(run_cli: RunCli, tmp_path: Path) -> None:
    path = save_profile(a_profile(), tmp_path)
    assert "a40-tiny" in run_cli("profiles", "show", path).out
    ran = run_cli("profiles", "show", "b300")
    assert ran.code == 2
    assert "a40-qwen3-0.6b-300w" in ran.err
