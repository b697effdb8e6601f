"""conserve-sglang launch without starting anything."""

import json
import shlex
import socket
from pathlib import Path

import pytest

from .conftest import RunCli

MAPS = Path(__file__).parents[2] / "tier_maps"
TWO_MACHINES = Path(__file__).parents[1] / "maps" / "two_machines.yaml"


@pytest.mark.parametrize("name", ["cpu_local", "one_gpu", "a40_l4", "h100_l4", "a40_capped"])
def test_a_dry_run_prints_every_command_without_any_gpu(run_cli: RunCli, name: str) -> None:
    ran = run_cli("launch", "--tier-map", MAPS / f"{name}.yaml", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    lines = [line for line in ran.out.splitlines() if line and not line.startswith("#")]
    servers = [shlex.split(line) for line in lines if "sglang.launch_server" in line]
    agents = [line for line in lines if "-m conserve_sglang.agent --tier-map" in line]
    assert len(agents) == (name == "a40_capped")  # the one whose energy is read
    assert len(servers) == len(lines) - 1 - len(agents)
    assert all("CONSERVE_ENABLED=1" in words for words in servers)
    assert "-m conserve_sglang.router --tier-map" in lines[-1]


def test_a_dry_run_says_which_caps_would_be_set(run_cli: RunCli) -> None:
    out = run_cli("launch", "--tier-map", MAPS / "a40_capped.yaml", "--dry-run").out
    assert "# power caps: asked for: tier decode: GPU 1 of 127.0.0.1: power cap 200 W" in out


def test_a_dry_run_as_json(run_cli: RunCli) -> None:
    ran = run_cli("launch", "--tier-map", TWO_MACHINES, "--dry-run", "--json")
    document = json.loads(ran.out)
    assert [row["host"] for row in document["processes"]][:2] == ["a40-box", "l4-box"]
    assert document["processes"][0]["argv"][:3] == ["python3", "-m", "sglang.launch_server"]
    assert len(document["notices"]) == 1


def test_a_dry_run_of_a_host_has_what_that_one_starts(run_cli: RunCli) -> None:
    words = ("launch", "--tier-map", TWO_MACHINES, "--dry-run", "--json", "--host")
    rows = json.loads(run_cli(*words, "l4-box", "--no-router").out)["processes"]
    assert {row["host"] for row in rows} == {"l4-box"}
    with_router = json.loads(run_cli(*words, "l4-box").out)["processes"]
    assert [row["name"] for row in with_router] == [*(row["name"] for row in rows), "router"]
    ran = run_cli(*words, "nohost")
    assert ran.code == 2
    assert "its hosts are a40-box, l4-box" in ran.err


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_a_dry_run_keeps_secrets(run_cli: RunCli, tmp_path: Path, as_json: list[str]) -> None:
    text = (MAPS / "cpu_local.yaml").read_text()
    path = tmp_path / "map.yaml"
    path.write_text(text.replace("    count: 2\n", "    count: 2\n    env: {HF_TOKEN: hush}\n"))
    out = run_cli("launch", "--tier-map", path, "--dry-run", *as_json).out
    assert out.count("HF_TOKEN") == 2
    assert "hush" not in out


def test_another_machines_map_is_exit_code_2(run_cli: RunCli) -> None:
    ran = run_cli("launch", "--tier-map", TWO_MACHINES, "--host", socket.gethostname())
    assert ran.code == 2
    assert "its hosts are a40-box, l4-box" in ran.err


def test_a_missing_file_is_exit_code_2(run_cli: RunCli, tmp_path: Path) -> None:
    ran = run_cli("launch", "--tier-map", tmp_path / "no.yaml", "--dry-run")
    assert ran.code == 2
    assert ran.err == f"error: {tmp_path}/no.yaml: cannot be read: No such file or directory\n"


def test_route_refuses_a_wrong_map(run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("schema_version: 9\n")
    ran = run_cli("route", "--tier-map", path)
    assert ran.code == 2
    assert "schema_version: 9 is not one this version reads" in ran.err


def test_route_hands_its_log_level_to_the_router(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, argv: started.append(argv))
    told = ("--log-level", "debug", "--log-format", "json", "--access-log")
    run_cli("route", "--tier-map", MAPS / "cpu_local.yaml", *told)
    assert started[0][-5:] == list(told)


def test_launch_hands_the_form_of_its_log_to_the_router(run_cli: RunCli) -> None:
    told = ("--no-state", "--log-format", "json", "--access-log")
    ran = run_cli("launch", "--tier-map", MAPS / "cpu_local.yaml", "--dry-run", *told)
    assert " ".join(told) in ran.out
    plain = run_cli("launch", "--tier-map", MAPS / "cpu_local.yaml", "--dry-run")
    assert "--log-format" not in plain.out
    assert "--access-log" not in plain.out


def test_route_refuses_a_log_level_there_is_not(run_cli: RunCli) -> None:
    ran = run_cli("route", "--tier-map", MAPS / "cpu_local.yaml", "--log-level", "loud")
    assert ran.code == 2
    assert "--log-level: log level 'loud' is none of debug, info" in ran.err


def test_route_refuses_a_log_format_there_is_not(run_cli: RunCli) -> None:
    ran = run_cli("route", "--tier-map", MAPS / "cpu_local.yaml", "--log-format", "xml")
    assert ran.code == 2
    assert "--log-format: log format 'xml' is none of text, json" in ran.err
