"""conserve-sglang tiers."""

import json
from pathlib import Path

import pytest

from conserve_sglang.tiermap import json_schema_text

from .conftest import RunCli

MAPS = Path(__file__).parents[2] / "tier_maps"
TWO_MACHINES = Path(__file__).parents[1] / "maps" / "two_machines.yaml"


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.yaml"
    path.write_text("schema_version: 1\nmodel: {path: m}\ntires: []\n")
    return path


def test_all_shipped_maps_are_valid(run_cli: RunCli) -> None:
    ran = run_cli("tiers", "validate", *sorted(MAPS.glob("*.yaml")))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count(": ok\n") == 5


def test_a_wrong_map_is_exit_code_2(run_cli: RunCli, wrong: Path) -> None:
    ran = run_cli("tiers", "validate", MAPS / "cpu_local.yaml", wrong)
    assert ran.code == 2
    assert "cpu_local.yaml: ok" in ran.out
    assert ran.err == f"{wrong}: tires: unknown field; did you mean tiers?\n"


MISSING = "router: {auth: {keys_file: no.yaml}, admin_key_env: NO_SUCH_KEY, "


@pytest.fixture
def incomplete(tmp_path: Path) -> Path:
    """A map that is right, and names a key file, a variable and a model that are not here."""
    path = tmp_path / "map.yaml"
    text = (MAPS / "cpu_local.yaml").read_text()
    path.write_text(text.replace("../.cache/tiny-qwen3", "./model").replace("router: {", MISSING))
    return path


def test_what_is_not_on_this_machine_is_a_note(run_cli: RunCli, incomplete: Path) -> None:
    ran = run_cli("tiers", "validate", incomplete)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == f"{incomplete}: ok"
    here = f"{incomplete}: note: on this machine: "
    assert lines[1].startswith(f"{here}router.admin_key_env: the environment variable NO_SUCH_KEY")
    assert lines[2].startswith(f"{here}router.auth.keys_file: there is no {incomplete.parent}/no.")
    assert lines[3].startswith(f"{here}model.path: the model folder {incomplete.parent}/model has")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("router", ["router.admin_key_env", "router.auth.keys_file"]),
        ("workers", ["router.admin_key_env", "model.path"]),
        ("all", ["router.admin_key_env", "router.auth.keys_file", "model.path"]),
    ],
)
def test_it_is_an_error_where_that_part_runs(
    run_cli: RunCli, incomplete: Path, part: str, fields: list[str]
) -> None:
    ran = run_cli("tiers", "validate", "--here", part, incomplete)
    assert (ran.code, ran.out) == (2, "")
    assert [line.split(": ")[1] for line in ran.err.splitlines()] == fields
    ran = run_cli("tiers", "validate", "--json", "--here", part, incomplete)
    assert len(json.loads(ran.out)[0]["missing"]) == len(fields)


def test_workers_of_other_machines_are_not_looked_at(run_cli: RunCli) -> None:
    ran = run_cli("tiers", "validate", "--here", "workers", TWO_MACHINES)
    assert ran.code == 2
    assert "its hosts are a40-box, l4-box" in ran.err
    ran = run_cli("tiers", "validate", "--here", "workers", "--host", "l4-box", TWO_MACHINES)
    assert (ran.code, ran.err) == (0, "")


def test_validation_as_json(run_cli: RunCli, wrong: Path) -> None:
    ran = run_cli("tiers", "validate", "--json", wrong)
    assert ran.code == 2
    (result,) = json.loads(ran.out)
    assert result["file"] == str(wrong)
    assert "tires: unknown field" in result["error"]


def test_show_has_every_worker_and_says_what_is_not_enforced(run_cli: RunCli) -> None:
    out = run_cli("tiers", "show", MAPS / "a40_capped.yaml").out
    assert all(name in out for name in ("prefill-0", "decode-0", "decode-1", "decode-2", "200 W"))
    out = run_cli("tiers", "show", TWO_MACHINES).out
    assert "is not enforced, as no energy is read" in " ".join(out.split())


def test_show_at_80_columns_has_every_name_whole(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run_cli("tiers", "show", MAPS / "h100_l4.yaml").out.splitlines()
    assert [line.split()[0] for line in lines[3:11]] == [
        *(f"l4-prefill-{number}" for number in range(7)),
        "h100-decode-0",
    ]
    assert max(map(len, lines)) <= 80


def test_show_as_json_is_the_decoded_map(run_cli: RunCli) -> None:
    document = json.loads(run_cli("tiers", "show", "--json", TWO_MACHINES).out)
    assert [worker["worker_id"] for worker in document["workers"]][:2] == ["a40-0", "l4-0"]
    assert document["router"]["control_port"] == 30001


def test_show_masks_secrets(run_cli: RunCli, tmp_path: Path) -> None:
    text = (MAPS / "cpu_local.yaml").read_text()
    text = text.replace("    count: 2\n", "    count: 2\n    env: {HF_TOKEN: hush, A: b}\n")
    flags = "sglang_flags: {api-key: hush, dtype: auto}"
    text = text.replace("sglang_flags: *cpu", flags)
    text = text.replace("control_port:", "state: {redis: 'redis://a:hush@h/0'}, control_port:")
    (tmp_path / "map.yaml").write_text(text)
    ran = run_cli("tiers", "show", "--json", tmp_path / "map.yaml")
    assert "hush" not in ran.out + ran.err
    document = json.loads(ran.out)
    assert document["tiers"][1]["env"] == {"HF_TOKEN": "***", "A": "b"}
    assert document["tiers"][1]["sglang_flags"] == {"api-key": "***", "dtype": "auto"}
    assert document["router"]["state"]["redis"] == "redis://a:***@h/0"
    assert "router.state.redis holds a password" in document["notices"][0]
    assert "hush" not in run_cli("tiers", "show", tmp_path / "map.yaml").out


def test_show_of_a_wrong_map_is_exit_code_2(run_cli: RunCli, wrong: Path) -> None:
    ran = run_cli("tiers", "show", wrong)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {wrong}: tires: unknown field")


def test_schema_prints_the_stored_schema(run_cli: RunCli) -> None:
    assert run_cli("tiers", "schema").out == json_schema_text()
