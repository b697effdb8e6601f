"""The GPU bench, as far as a machine without a GPU can tell."""

import argparse
import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import __main__ as stages
from bench.gpu import deployment, install
from bench.gpu.replay import energy_of, play, summary, workload
from bench.gpu.running import Failed, Machine
from conserve_sglang.core.worker import Role
from conserve_sglang.launcher.launch import LaunchOptions, plan_launch
from conserve_sglang.profiler.talk import Talker
from conserve_sglang.tiermap import load_tier_map
from tests.profiler.fake_worker import Costs, FakeMeasuredWorker

ROOT = Path(__file__).resolve().parents[2]
needs_tomllib = pytest.mark.skipif(sys.version_info < (3, 11), reason="the target has Python 3.12")


def a_pack(folder: Path) -> Path:
    """A pack of one module in two parts, and a wheel of another."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w:xz") as archive:
        data = b"ANSWER = 42\n" * 4000
        member = tarfile.TarInfo("packed_module.py")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    whole = plain.getvalue()
    halves = {"pack.part00": whole[: len(whole) // 2], "pack.part01": whole[len(whole) // 2 :]}
    for name, part in halves.items():
        (folder / name).write_bytes(part)
    parts = [{"name": name, "bytes": len(part)} for name, part in halves.items()]
    manifest = {"parts": parts, "sha256": hashlib.sha256(whole).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels" / "wheeled-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("wheeled_module.py", "ANSWER = 43\n")
    return folder


@needs_tomllib
def test_a_pack_and_this_checkout_become_a_site(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    site = tmp_path / "site"
    install.install(a_pack(pack), site)
    program = (
        "import packed_module, wheeled_module, conserve_sglang, conserve_cli.app;"
        "from importlib.metadata import entry_points;"
        "[plugin] = [e for e in entry_points(group='sglang.srt.plugins') if e.dist.version"
        " == '0+checkout'];"
        "print(packed_module.ANSWER + wheeled_module.ANSWER, plugin.value,"
        " conserve_sglang.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    answer, plugin, path = done.stdout.split()
    assert (answer, plugin) == ("85", "conserve_sglang.plugin:activate")
    assert Path(path).is_relative_to(site)
    (site / "kept").write_text("")
    install.install(pack, site)
    assert (site / "kept").exists(), "the same pack is not unpacked again"


@needs_tomllib
def test_the_entry_points_are_those_of_the_installed_package(tmp_path: Path) -> None:
    install.make_known(tmp_path)
    text = (tmp_path / "conserve_sglang-0+checkout.dist-info" / "entry_points.txt").read_text()
    for group in ("sglang.srt.plugins", "console_scripts"):
        (known,) = (e for e in entry_points(group=group) if e.value.startswith("conserve_"))
        assert f"{known.name} = {known.value}" in text


def test_a_pack_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    pack = a_pack(tmp_path)
    (pack / "pack.part01").write_bytes(b"x")
    with pytest.raises(install.CannotInstall, match=r"cut off: pack\.part01"):
        install.install(pack, tmp_path / "site")


def test_a_pack_of_other_bytes_is_refused(tmp_path: Path) -> None:
    pack = a_pack(tmp_path)
    manifest = json.loads((pack / "MANIFEST.json").read_text())
    (pack / "MANIFEST.json").write_text(json.dumps({**manifest, "sha256": "0" * 64}))
    with pytest.raises(install.CannotInstall, match="sha256"):
        install.install(pack, tmp_path / "site")
    assert not (tmp_path / "site" / ".installed").exists()


def test_no_pack_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(install.CannotInstall, match=r"MANIFEST\.json is not there"):
        install.install(tmp_path, tmp_path / "site")


def test_what_cannot_be_imported_is_named() -> None:
    failed = install.check_imports({}, ["json", "no_such_module"])
    assert list(failed) == ["no_such_module"]
    assert "ModuleNotFoundError" in failed["no_such_module"]


@pytest.mark.parametrize("policy", stages.POLICIES)
@pytest.mark.parametrize(("attention", "transfer"), stages.ATTEMPTS)
def test_the_tier_maps_can_be_launched(
    tmp_path: Path, policy: str, attention: str, transfer: str
) -> None:
    options = argparse.Namespace(state=tmp_path, cpu=False, gpu="H200")
    path = stages.write_tier_map(options, (attention, transfer), policy)
    plan = plan_launch(load_tier_map(path), LaunchOptions(log_dir=tmp_path))
    prefill, decode = plan.workers
    assert prefill.shared_gpus == decode.shared_gpus == (0,)
    for spec in plan.workers:
        words = " ".join(spec.argv)
        assert f"--attention-backend {attention}" in words
        assert f"--disaggregation-transfer-backend {transfer}" in words
        assert "--load-format dummy --skip-tokenizer-init" in words
    assert decode.env["CONSERVE_LOCAL_PREFILL"] == ("1" if policy == "conserve" else "0")


def test_both_policies_use_the_same_workers_through_two_routers(tmp_path: Path) -> None:
    options = argparse.Namespace(state=tmp_path, cpu=True)
    maps = [load_tier_map(stages.write_tier_map(options, ("", ""), p)) for p in stages.POLICIES]
    assert maps[0].workers == maps[1].workers
    assert maps[0].router.port != maps[1].router.port
    assert [m.policy.name for m in maps] == ["conserve", "stock-pd"]


def test_the_workload_is_the_papers_and_the_same_each_time() -> None:
    plans, statement = workload(64, 1.0, deployment.CONTEXT - 512, seed=0)
    again, _ = workload(64, 1.0, deployment.CONTEXT - 512, seed=0)
    assert plans == again
    assert len(plans) == 64
    assert 12_000 < sorted(p.turns[0].input_tokens for p in plans)[32] < 17_000
    assert "all lengths times" in statement


async def test_conversations_are_played_with_all_that_came_before() -> None:
    plans, _ = workload(4, 50.0, 800, seed=1)
    costs = Costs(prefill_s=0, per_new_s=0, per_cached_s=0, step_s=0.0005, per_kv_s=0)
    async with FakeMeasuredWorker(costs=costs).serve() as worker:
        talker = Talker(worker.url, Role.MIXED, num_token_ids=500, rng=random.Random(1))
        played, began_s, ended_s = await play(talker, plans, run="x", seed=1)
        talker.close()
    told = summary(played)
    num_turns = sum(len(plan.turns) for plan in plans)
    assert (told["num_answered"], worker.num_requests) == (4, num_turns)
    assert told["prompt_tokens"] == sum(t.input_tokens for p in plans for t in p.turns)
    assert told["output_tokens"] == sum(t.output_tokens for p in plans for t in p.turns)
    assert told["cached_tokens"] > 0
    assert 0 < told["ttfet_s"]["p50"] <= told["e2e_s"]["max"] <= ended_s - began_s


async def test_a_conversation_that_fails_is_counted_and_named() -> None:
    plans, _ = workload(2, 50.0, 800, seed=1)
    async with FakeMeasuredWorker().serve() as worker:
        worker.refuses_longer_than = 0
        talker = Talker(worker.url, Role.MIXED, num_token_ids=500, rng=random.Random(1))
        played, _, _ = await play(talker, plans, run="x", seed=1)
        talker.close()
    told = summary(played)
    assert (told["num_answered"], told["ttfet_s"]) == (0, None)
    assert "too long" in told["failures"][0]


def test_joules_are_of_the_whole_run() -> None:
    told = {"output_tokens": 1000, "num_answered": 10}
    found = energy_of(100.0, 300.0, 20.0, told)
    assert (found["joules"], found["joules_above_idle"]) == (6000.0, 4000.0)
    assert (found["j_per_conversation"], found["j_per_output_token"]) == (600.0, 6.0)
    assert energy_of(100.0, None, 20.0, told)["joules"] is None


def a_machine(tmp_path: Path, seconds: float = 60.0) -> Machine:
    return Machine(tmp_path, tmp_path, time.monotonic() + seconds)


def test_the_next_backends_are_tried_when_some_do_not_start(tmp_path: Path) -> None:
    tried: list[Any] = []

    def work(chosen: Any) -> None:
        tried.append(chosen)
        if chosen[0] == "fa3":
            raise Failed("no kernel image")

    assert a_machine(tmp_path, 600.0).first_that_works(stages.ATTEMPTS, work) == ["triton", "nixl"]
    assert len(tried) == 2


def test_when_none_works_each_says_why(tmp_path: Path) -> None:
    def work(chosen: Any) -> None:
        raise Failed(f"no luck {chosen[0]}")

    with pytest.raises(Failed, match=r"(?s)no luck fa3.*no luck triton"):
        a_machine(tmp_path, 600.0).first_that_works(stages.ATTEMPTS, work)


def test_a_command_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"(?s)exit code 2.*is not a command|No such command"):
        a_machine(tmp_path).run_command("try", ["no-such-command"])


def test_stages_that_are_done_are_not_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--cpu", "--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    monkeypatch.setattr(sys, "argv", ["bench.gpu", *argv, "--stages", "install"])
    assert (stages.main(), stages.main()) == (0, 0)
    assert "install: done before" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["is_gpu_result"] is False
    assert "no GPU result" in results["note"]
    assert results["stages"]["install"]["is_done"] is True


def test_without_a_pack_the_first_stage_says_so_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    monkeypatch.setattr(sys, "argv", ["bench.gpu", *argv])
    assert stages.main() == 1
    stage = json.loads((tmp_path / "out" / "results.json").read_text())["stages"]
    assert list(stage) == ["install"]
    assert "--pack" in stage["install"]["error"]
