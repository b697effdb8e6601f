"""From a tier map to processes, without starting any."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import EnergySettings, PolicyChoice, TierMap, TlsSettings
from conserve_sglang.launcher.plan import (
    ProcessSpec,
    all_commands,
    backoff_s,
    command_line,
    make_plan,
    notices,
    router_spec,
    with_processes,
    without_secrets,
    worker_spec,
)
from conserve_sglang.tiermap import load_tier_map

MAPS = Path(__file__).parents[2] / "tier_maps"
TWO_MACHINES = Path(__file__).parents[1] / "maps" / "two_machines.yaml"


def two_machines() -> TierMap:
    return load_tier_map(TWO_MACHINES)


def a_prefiller() -> ProcessSpec:
    tier_map = load_tier_map(MAPS / "cpu_local.yaml")
    return worker_spec(tier_map, tier_map.workers[0], python="python")


def test_workers_that_share_a_gpu_know_it() -> None:
    shared = load_tier_map(MAPS / "one_gpu.yaml")
    specs = [worker_spec(shared, worker, python="python") for worker in shared.workers]
    assert [spec.shared_gpus for spec in specs] == [(0,), (0,)]
    alone = two_machines()
    assert worker_spec(alone, alone.workers[0], python="python").shared_gpus == ()


def test_only_the_workers_of_this_host_are_planned() -> None:
    plan = make_plan(
        two_machines(), is_here=lambda host: host == "l4-box", python="python", with_router=False
    )
    assert [spec.name for spec in plan.workers] == ["l4-0", "l4-1", "l4-2", "l4-3"]
    assert plan.router is None


def test_a_map_without_a_worker_here_says_which_hosts_it_has() -> None:
    with pytest.raises(ConfigError, match=r"its hosts are a40-box, l4-box.*--host"):
        make_plan(two_machines(), is_here=lambda _: False, python="python", with_router=True)


def test_a_router_on_all_interfaces_is_reached_by_the_loopback() -> None:
    plan = make_plan(
        two_machines(), is_here=lambda host: host == "a40-box", python="python", with_router=True
    )
    assert plan.url == "http://127.0.0.1:30000"
    assert plan.control == ("127.0.0.1", 30001)
    assert plan.router is not None
    assert plan.router.listens == (("0.0.0.0", 30000), ("127.0.0.1", 30001))


def test_a_router_on_one_address_is_controlled_where_it_listens_for_that() -> None:
    tier_map = two_machines()
    settings = replace(tier_map.router, host="10.0.0.5", control_host="10.0.0.6")
    router = router_spec(replace(tier_map, router=settings), python="python")
    assert (router.health_host, router.health_port) == ("10.0.0.6", 30001)
    assert router.health_path == "/ready"
    assert router.listens == (("10.0.0.5", 30000), ("10.0.0.6", 30001))


def test_processes_asked_for_go_with_the_router() -> None:
    tier_map = two_machines()
    assert "--workers" not in router_spec(with_processes(tier_map, None), python="python").argv
    asked = router_spec(with_processes(tier_map, 3), python="python").argv
    assert asked[asked.index("--workers") + 1] == "3"


def test_a_prefiller_listens_on_its_bootstrap_port_too() -> None:
    plan = make_plan(
        load_tier_map(MAPS / "cpu_local.yaml"),
        is_here=lambda _: True,
        python="python",
        with_router=True,
    )
    assert [spec.listens for spec in plan.workers] == [
        (("127.0.0.1", 30100), ("127.0.0.1", 30150)),
        (("127.0.0.1", 30200),),
        (("127.0.0.1", 30201),),
    ]


def test_every_process_of_every_host_is_described() -> None:
    commands = all_commands(two_machines(), is_here=lambda _: False, python="/venv/bin/python")
    assert [host for host, _ in commands] == ["a40-box", *["l4-box"] * 4, "0.0.0.0"]
    assert commands[0][1].argv[0] == "python3"


def test_a_command_line_can_be_pasted_into_a_shell() -> None:
    tier_map = load_tier_map(MAPS / "cpu_local.yaml")
    (_, spec), *_ = all_commands(tier_map, is_here=lambda _: True, python="/my python")
    words = shlex.split(command_line(spec))
    assert words[0] == "env"
    assert words[1 : 1 + len(spec.env)] == [f"{key}={value}" for key, value in spec.env.items()]
    assert tuple(words[1 + len(spec.env) :]) == spec.argv


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "db_password", "KEY_1", "APIKEY"],
)
def test_a_command_line_keeps_secrets_of_the_environment(name: str) -> None:
    spec = replace(a_prefiller(), env={name: "hush", "NCCL_DEBUG": "WARN"})
    assert command_line(spec).startswith(f"env {name}='***' NCCL_DEBUG=WARN ")
    assert "hush" not in command_line(spec)
    assert spec.env[name] == "hush"  # the process itself still gets it


def test_a_command_line_keeps_secrets_of_the_arguments() -> None:
    argv = ("python", "--api-key", "hush", "--ssl-keyfile-password", "hush", "--port", "1")
    line = command_line(replace(a_prefiller(), argv=argv, env={}))
    assert line == "python --api-key '***' --ssl-keyfile-password '***' --port 1"


def test_processes_that_speak_tls_are_asked_so() -> None:
    tier_map = two_machines()
    tls = TlsSettings(cert_file="/c.pem", key_file="/k.pem")
    flags = {"ssl-certfile": "/w.pem", "ssl-keyfile": "/w.key"}
    tiers = tuple(replace(tier, sglang_flags=flags) for tier in tier_map.tiers)
    tier_map = replace(tier_map, tiers=tiers, router=replace(tier_map.router, tls=tls))
    plan = make_plan(tier_map, is_here=lambda _: True, python="python", with_router=True)
    assert plan.router is not None
    assert all(spec.health_tls for spec in (*plan.workers, plan.router))
    assert (plan.url, plan.control_cert) == ("https://127.0.0.1:30000", "/c.pem")
    assert not a_prefiller().health_tls


def test_workers_key_is_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W_KEY", "hush")
    tier_map = load_tier_map(MAPS / "cpu_local.yaml")
    settings = replace(tier_map.router, worker_api_key_env="W_KEY", admin_key_env="A_KEY")
    tier_map = replace(tier_map, router=settings)
    worker = worker_spec(tier_map, tier_map.workers[0], python="python")
    assert command_line(worker).endswith(' --api-key "$W_KEY"')
    assert without_secrets(worker).argv[-2:] == ("--api-key", "***")
    assert "hush" not in command_line(worker)
    assert worker.withheld == ("W_KEY", "A_KEY", "CONSERVE_CAPS_SOCKET", "CONSERVE_CAPS_KEY")
    assert router_spec(tier_map, python="python").withheld == ()


def test_what_only_sounds_like_a_secret_is_shown() -> None:
    env = {"TOKENIZERS_PARALLELISM": "false", "MAX_TOKENS": "7", "MONKEYPATCH": "1"}
    argv = ("python", "--max-total-tokens", "65536", "--speculative-token-map", "map.pt")
    spec = replace(a_prefiller(), argv=argv, env=env)
    assert without_secrets(spec) == spec


def test_a_budget_that_is_not_enforced_is_said_so() -> None:
    tier_map = two_machines()
    plan = make_plan(tier_map, is_here=lambda _: True, python="python", with_router=True)
    assert plan.notices == (
        "power budget 588 W named in the tier map is not enforced, as no energy is read: add"
        " energy: {} to it, and router.admin_key_env, the key of its agent on a40-box",
    )
    guarded = replace(tier_map, router=replace(tier_map.router, admin_key_env="KEY"))
    assert notices(guarded)[0].endswith("add energy: {} to it")
    enforced = replace(tier_map, energy=EnergySettings())
    assert make_plan(enforced, is_here=lambda _: True, python="p", with_router=True).notices == ()


def test_the_backoff_doubles_up_to_its_bound() -> None:
    waits = [backoff_s(failures, first_s=1, most_s=60) for failures in (1, 2, 3, 6, 7, 5000)]
    assert waits == [1, 2, 4, 32, 60, 60]


def test_an_agent_is_started_where_energy_is_read_and_workers_log_their_phases() -> None:
    tier_map = replace(load_tier_map(MAPS / "cpu_local.yaml"), energy=EnergySettings())
    plan = make_plan(
        tier_map, is_here=lambda _: True, python="python", with_router=True, phase_dir="/logs"
    )
    (agent,) = plan.agents
    assert [spec.name for spec in plan.processes][:2] == ["agent", "prefill-0"]
    assert agent.argv[-4:] == ("--host", "127.0.0.1", "--phase-dir", "/logs")
    assert agent.listens == (("127.0.0.1", 30002),)
    assert agent.withheld == ("CUDA_VISIBLE_DEVICES",)  # gpu_ids count all of the driver's
    assert plan.workers[1].env["CONSERVE_PHASE_LOG"] == "/logs/decode-0.phases"


def test_no_agent_and_no_phase_log_where_energy_is_not_read() -> None:
    tier_map = load_tier_map(MAPS / "cpu_local.yaml")
    plan = make_plan(tier_map, is_here=lambda _: True, python="python", with_router=True)
    assert plan.agents == ()
    assert not any("CONSERVE_PHASE_LOG" in spec.env for spec in plan.workers)


@pytest.mark.parametrize("policy", ["coin-flip", "ampd-like", "work-conserving-tails"])
def test_a_policy_that_is_simulated_only_is_not_launched(policy: str) -> None:
    tier_map = replace(two_machines(), policy=PolicyChoice(name=policy, params={}))
    with pytest.raises(ConfigError, match=rf"{policy} is simulated only: it would need .* serve"):
        make_plan(tier_map, is_here=lambda host: True, python="python", with_router=True)
    with pytest.raises(ConfigError, match="simulated only"):
        all_commands(tier_map, is_here=lambda host: True, python="python")
