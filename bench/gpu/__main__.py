"""What does one NVIDIA GPU take, and what do conversations cost on it under two policies?

    python3 bench/gpu/__main__.py --pack DIR --out DIR [--seconds 570]     # on the GPU machine
    python -m bench.gpu --cpu --out DIR                                    # tried on CPU servers

Stages, each with its log in OUT and its mark in STATE, so that the same call goes on where the
last one stopped: install, profile, replay. `--seconds` is how long this call may take in all.
README.md beside this file has the calls. Reads the GPU's counters only: no cap, clock or mode is
set.
"""

import argparse
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file, before anything is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.gpu import deployment, install
from bench.gpu.running import Failed, Machine, gpu_facts, machine_facts

STAGES = ("install", "profile", "replay")
POLICIES = ("conserve", "stock-pd")
WARM_UP = "warm-up"
ATTEMPTS = (("fa3", "nixl"), ("triton", "nixl"), ("triton", "mooncake_tcp"))
"""Attention and transfer backends, in the order in which they are tried."""

STARTING_S = 150.0
LEAST_PROFILE_S, WHOLE_PROFILE_S = 60.0, 480.0
CPU_CONVERSATIONS, GPU_CONVERSATIONS = 8, 64


def main() -> int:
    """Run the stages that are left; 0 if all are done."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    options.state.mkdir(parents=True, exist_ok=True)
    machine = Machine(options.out, options.state, time.monotonic() + options.seconds)
    code = 0
    for name in options.stages:
        if not _stage(name, machine, options):
            code = 1
            break
    _collect(machine, options)
    return code


def _stage(name: str, machine: Machine, options: argparse.Namespace) -> bool:
    """Run one stage unless it is done; whether it is done now."""
    mark = options.state / f"{name}.json"
    known = json.loads(mark.read_text()) if mark.is_file() and not options.fresh else None
    work: Callable[[Machine, argparse.Namespace], dict[str, Any]] = {
        "install": _install,
        "profile": _profile,
        "replay": _replay,
    }[name]
    if known is not None and known["is_done"]:
        if name == "install":
            machine.env |= known["env"]
        print(f"{name}: done before", flush=True)
        return True
    began_s = time.monotonic()
    print(f"{name}: begins, {machine.left_s:.0f} s left", flush=True)
    try:
        found = {"is_done": True, **work(machine, options)}
    except (Failed, install.CannotInstall, OSError) as error:
        found = {"is_done": False, "error": str(error)}
    found["took_s"] = round(time.monotonic() - began_s, 1)
    mark.write_text(json.dumps(found, indent=1) + "\n")
    verdict = "done" if found["is_done"] else f"NOT DONE: {found.get('error', found.get('why'))}"
    print(f"{name}: {verdict} ({found['took_s']:.0f} s)", flush=True)
    return bool(found["is_done"])


def _install(machine: Machine, options: argparse.Namespace) -> dict[str, Any]:
    if options.cpu:
        return {"env": {}, "facts": machine_facts()}
    if options.pack is None:
        raise Failed("--pack: where is the folder with SGLang's pack?")
    facts = install.install(options.pack, options.site)
    machine.env |= install.environment(options.site)
    failed = install.check_imports(machine.env)
    if failed:
        lines = "\n".join(f"  {module}: {error}" for module, error in failed.items())
        raise Failed(f"these cannot be imported from the pack:\n{lines}")
    own = {name: machine.env[name] for name in install.environment(options.site)}
    return {"env": own, "pack": facts, "facts": {**machine_facts(), **gpu_facts(machine.env)}}


def _profile(machine: Machine, options: argparse.Namespace) -> dict[str, Any]:
    """Profile for 8 minutes in all, over as many calls as it takes."""
    spent_path = options.state / "profile_spent_s"
    spent_s = float(spent_path.read_text()) if spent_path.is_file() else 0.0
    budget_s = min(options.profile_seconds - spent_s, machine.left_s - STARTING_S - 30.0)
    if budget_s < min(LEAST_PROFILE_S, options.profile_seconds - spent_s):
        raise Failed(f"no time left to profile in this call ({machine.left_s:.0f} s); call again")
    out = options.state / "profile" / profile_name(options)
    argv = ["profile", "--out", str(out), "--minutes", f"{budget_s / 60:.2f}"]
    argv += ["--log-dir", str(options.state / "profile-logs"), "--ready-timeout-s", "240"]
    argv += ["--meter", "nvml"] if options.cpu and options.meter != "none" else []
    began_s = time.monotonic()
    choice = machine.first_that_works(
        attempts(options), lambda chosen: _profile_once(machine, options, argv, chosen)
    )
    spent_s += min(budget_s, time.monotonic() - began_s)
    spent_path.write_text(f"{spent_s:.1f}")
    is_done = spent_s >= options.profile_seconds - LEAST_PROFILE_S
    return {"backends": choice, "spent_s": spent_s, "is_done": is_done,
            "why": "time left for more points: call again"}  # fmt: skip


def _profile_once(
    machine: Machine, options: argparse.Namespace, argv: list[str], chosen: tuple[str, str]
) -> None:
    path = write_tier_map(options, chosen, "conserve")
    machine.run_command("profile", [*argv, "--tier-map", str(path)])


def _replay(machine: Machine, options: argparse.Namespace) -> dict[str, Any]:
    """The same conversations through two routers over the same workers, one after the other."""
    known = options.state / "profile.json"
    profiled = json.loads(known.read_text()) if known.is_file() else {}
    tried = [tuple(profiled["backends"])] if profiled.get("backends") else attempts(options)
    results: dict[str, Any] = {}
    choice = machine.first_that_works(
        tried, lambda chosen: results.update(_replay_once(machine, options, chosen))
    )
    return {"backends": choice, "policies": results}


def _replay_once(
    machine: Machine, options: argparse.Namespace, chosen: tuple[str, str]
) -> dict[str, Any]:
    first = write_tier_map(options, chosen, POLICIES[0])
    second = write_tier_map(options, chosen, POLICIES[1])
    router = deployment.PORTS["router"]
    launch = ["launch", "--no-state", "--tier-map", str(first), "--ready-timeout-s", "240",
              "--log-dir", str(options.state / "replay-logs")]  # fmt: skip
    found = {}
    with machine.running("launch", launch, health=router, limit_s=machine.left_s - 60.0):
        route = ["route", "--no-state", "--tier-map", str(second)]
        baseline = router + deployment.BASELINE_OFFSET
        with machine.running("route", route, health=baseline, limit_s=60.0):
            # Once unmeasured: kernels are compiled for the shapes they meet first.
            _played(machine, options, router, WARM_UP, options.conversations // 8 or 1)
            for policy, port in zip(POLICIES, (router, baseline), strict=True):
                for worker in ("prefill", "decode"):
                    machine.post(deployment.PORTS[worker], "/flush_cache")
                before = machine.counters(port + 1)
                found[policy] = _played(machine, options, port, policy, options.conversations)
                after = machine.counters(port + 1)
                found[policy]["router"] = {name: after[name] - before[name] for name in after}
    return found


def _played(
    machine: Machine, options: argparse.Namespace, port: int, policy: str, count: int
) -> dict[str, Any]:
    out = options.state / f"replay-{policy}.json"
    out.unlink(missing_ok=True)
    argv = {
        "--url": f"http://127.0.0.1:{port}",
        "--policy": policy,
        "--out": out,
        "--conversations": count,
        "--rate": options.rate,
        "--window": options.window,
        "--meter": options.meter,
        "--seed": 1 if policy == WARM_UP else 0,
        "--token-ids": 500 if options.cpu else 30_000,
    }
    words = [str(word) for pair in argv.items() for word in pair]
    machine.run_module("replay", "bench.gpu.replay", words)
    told: dict[str, Any] = json.loads(out.read_text())
    if options.cpu and told["energy"].get("joules") is not None:
        told["energy"]["origin"] = "of a stand-in library with an invented power"
    return told


def attempts(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The backends to try."""
    return [("torch_native", "mooncake")] if options.cpu else list(ATTEMPTS)


def profile_name(options: argparse.Namespace) -> str:
    """What the profile is called: the GPU and the model."""
    gpu = "cpu-trial" if options.cpu else options.gpu.lower().replace(" ", "-")
    return f"{gpu}-qwen3-0.6b-dummy"


def write_tier_map(options: argparse.Namespace, chosen: tuple[str, str], policy: str) -> Path:
    """The model folder and the tier map of a policy, in the state folder."""
    config = {**deployment.QWEN3_0_6B, **(deployment.CPU_SHAPE if options.cpu else {})}
    model = deployment.write_model(options.state / "model", config)
    if options.cpu:
        tier_map = deployment.cpu_tier_map(model)
    else:
        attention, transfer = chosen
        tier_map = deployment.gpu_tier_map(
            model, options.gpu, attention=attention, transfer=transfer
        )
    if policy != POLICIES[0]:
        tier_map = deployment.baseline_of(tier_map, policy)
    path: Path = options.state / f"tiers-{policy}.json"
    path.write_text(json.dumps(tier_map, indent=1))
    return path


def _collect(machine: Machine, options: argparse.Namespace) -> None:
    """Results, profile and logs in OUT: few files, none in a folder."""
    stages = {
        name: json.loads((options.state / f"{name}.json").read_text())
        for name in STAGES
        if (options.state / f"{name}.json").is_file()
    }
    for stage in stages.values():
        stage.pop("env", None)
    document: dict[str, Any] = {"is_gpu_result": not options.cpu}
    if options.cpu:
        document["note"] = (
            "A trial on CPU servers with a tiny model; no GPU result. Joules, if any, are of a"
            " stand-in libnvidia-ml with an invented power, and mean nothing."
        )
    document |= {"machine": machine.facts(options), "stages": stages}
    (options.out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    for path in (options.state / "profile").glob("*"):
        (options.out / path.name).write_bytes(path.read_bytes())
    with tarfile.open(options.out / "logs.tar.xz", "w:xz") as archive:
        for folder in ("profile-logs", "replay-logs"):
            if (options.state / folder).is_dir():
                archive.add(options.state / folder, folder)
        for log in options.out.glob("*.log"):
            archive.add(log, log.name)
    if options.bring_jit and install.CACHES.is_dir():
        with tarfile.open(options.out / "jit.tar.xz", "w:xz") as archive:
            archive.add(install.CACHES, ".")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where results are left")
    parser.add_argument("--pack", type=Path, help="the folder of SGLang's pack")
    parser.add_argument("--site", type=Path, default=Path("/tmp/conserve-site"))
    parser.add_argument("--state", type=Path, help="marks and what is kept between calls")
    parser.add_argument("--seconds", type=float, default=570.0, help="this call's time in all")
    parser.add_argument("--profile-seconds", type=float, default=WHOLE_PROFILE_S)
    parser.add_argument("--stages", type=lambda text: text.split(","), default=list(STAGES))
    parser.add_argument("--gpu", default="H200", help="the GPU's name in the profile")
    parser.add_argument("--conversations", type=int)
    parser.add_argument("--rate", type=float, default=1.0, help="conversations a second")
    parser.add_argument("--window", type=int, help="longest context in tokens")
    parser.add_argument("--meter", default="auto", help="of the replay: auto, nvml or none")
    parser.add_argument("--bring-jit", action="store_true", help="compiled kernels into OUT")
    parser.add_argument("--fresh", action="store_true", help="do every stage again")
    parser.add_argument("--cpu", action="store_true", help="try it on CPU servers: no GPU result")
    options = parser.parse_args()
    unknown = set(options.stages) - set(STAGES)
    if unknown:
        parser.error(f"--stages: there are {', '.join(STAGES)}")
    kind = "cpu" if options.cpu else "gpu"
    options.state = options.state or Path(f"/var/tmp/conserve-bench-{kind}")
    options.window = options.window or (1500 if options.cpu else deployment.CONTEXT - 512)
    options.conversations = options.conversations or (
        CPU_CONVERSATIONS if options.cpu else GPU_CONVERSATIONS
    )
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return options


if __name__ == "__main__":
    sys.exit(main())
