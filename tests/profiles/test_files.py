"""Profile files: what is written comes back, and what is wrong is named."""

from pathlib import Path

import pytest

from conserve_sglang.core.errors import ProfileError
from conserve_sglang.profiles import FrontPoint, load_profile, save_profile
from tests.profiles.builders import a_profile


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    for profile in (
        a_profile(),
        a_profile(name="less", transfer=(), idle_w=None, sm_clock_mhz=1410, tp=2),
    ):
        path = save_profile(profile, tmp_path / "made")
        assert load_profile(path) == profile
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == [
        "a40-tiny.csv", "a40-tiny.yaml", "less.csv", "less.yaml",
    ]  # fmt: skip


def test_a_file_is_of_the_least_version_that_can_hold_it(tmp_path: Path) -> None:
    """Releases before the newest version read all that it adds nothing to."""
    fronts = (FrontPoint(tokens=64, seconds=0.01, rel_ci=0.02), FrontPoint(tokens=256, seconds=0.1))
    for changes, version in (
        ({}, 1), ({"request": fronts}, 2), ({"handoff": fronts}, 2),
        ({"first_handoff_s": 0.05}, 2), ({"first_handoff_s": 0.0}, 2),
    ):  # fmt: skip
        path = save_profile(a_profile(**changes), tmp_path)
        assert path.read_text().startswith(f"schema_version: {version}\n")
        assert load_profile(path) == a_profile(**changes)


@pytest.mark.parametrize("value", ["-0.1", ".nan", ".inf"])
def test_a_first_handoff_takes_a_time(value: str, tmp_path: Path) -> None:
    path = save_profile(a_profile(first_handoff_s=0.05), tmp_path)
    path.write_text(path.read_text().replace("first_handoff_s: 0.05", f"first_handoff_s: {value}"))
    with pytest.raises(ProfileError, match=r"first_handoff_s: \S+ is not a number from 0 on"):
        load_profile(path)


@pytest.mark.parametrize("name", ["", "../a", "A40", ".hidden", "a b"])
def test_a_name_must_be_a_file_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be a profile's name"):
        save_profile(a_profile(name=name), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema_version: 1", "schema_version: 7", "schema_version is 7, this release"),
        ("gpu: A40\nmodel", "gpus: A40\nmodel", "gpu"),
        ("graph_mode: cuda-graph", "graph_mode: fast", "graph_mode"),
        ("kind: measured", "kind: guessed", "provenance.kind"),
        ("tp: 1", "tp: 0", "tp: 0 is not positive"),
        ("idle_w: 76.0", "idle_w: -1.0", "idle_w: -1.0 is not positive"),
        ("name: a40-tiny", "name: other", "must be that of the file"),
        ("schema_version: 1", "schema_version: [", "not valid YAML"),
        ("tp: 1", "tp: 1\nfirst_handoff_s: 0.1", "schema_version 1 has no first_handoff_s; 2 has"),
    ],
)
def test_a_wrong_head_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = save_profile(a_profile(), tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prefill,100,0,1,,,0.1,,", "the same point as in line 2"),
        ("prefill,x,0,1,,,0.1,,", "new_tokens: 'x' is not a whole number"),
        ("prefill,5,0,1,,,zero,,", "seconds: 'zero' is not a number"),
        ("prefill,5,0,1,,,-1,,", "seconds: -1.0 is not a positive number"),
        ("prefill,5,0,1,,,nan,,", "seconds: nan is not a positive"),
        ("decode,,,0,5,,0.1,,", "batch: 0 is less than 1"),
        ("decode,,,2,5,,0.1,-3,", "watts: -3.0 is not a positive"),
        ("transfer,,,,,,0.1,,", "tokens: '' is not a whole number"),
        ("warp,,,,,7,0.1,,", "kind 'warp' is none of prefill, decode, transfer"),
        ("request,,,,,64,0.1,,", "schema_version 1 has no request points; 2 has"),
        ("prefill,5,0", "needs 9 columns"),
    ],
)
def test_a_wrong_point_is_named_by_its_line(line: str, message: str, tmp_path: Path) -> None:
    path = save_profile(a_profile(), tmp_path)
    grid = path.with_suffix(".csv")
    num_lines = len(grid.read_text().splitlines())
    with grid.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile(path)
    assert f"{grid}:{num_lines + 1}" in str(caught.value)


def test_a_grid_needs_its_columns_and_both_phases(tmp_path: Path) -> None:
    path = save_profile(a_profile(), tmp_path)
    grid = path.with_suffix(".csv")
    lines = grid.read_text().splitlines()
    grid.write_text("\n".join(line for line in lines if not line.startswith("decode")))
    with pytest.raises(ProfileError, match="no decode points"):
        load_profile(path)
    grid.write_text("a,b\n1,2\n")
    with pytest.raises(ProfileError, match="its first line must be kind,new_tokens"):
        load_profile(path)
    grid.unlink()
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(path)
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(tmp_path / "none.yaml")


def test_watts_must_say_where_they_are_from(tmp_path: Path) -> None:
    path = save_profile(a_profile(power_provenance=None), tmp_path)
    with pytest.raises(ProfileError, match="has watts: say in power_provenance"):
        load_profile(path)
