"""Command lines and environments of SGLang servers."""

from pathlib import Path

from conserve_sglang.core.tier import OWNED_FLAGS, TierMap
from conserve_sglang.tiermap import parse_tier_map
from conserve_sglang.workers.argv import worker_argv, worker_env, worker_flags

TEXT = """
schema_version: 1
model: {path: Qwen/Qwen3-8B, served_name: qwen}
transfer_backend: nixl
tiers:
  - {name: p, role: prefill, gpu: A40, tp: 2, gpu_ids: [4, 5], base_port: 31000,
     bootstrap_base_port: 31900, host: big-box}
  - {name: d, role: decode, gpu: cpu, base_port: 31100, FLAGS}
  - {name: m, role: mixed, gpu: L4, gpu_ids: [0], base_port: 31200}
policy: {name: POLICY}
"""


def tier_map(*, policy: str = "conserve", flags: str = "tp: 1") -> TierMap:
    text = TEXT.replace("POLICY", policy).replace("FLAGS", flags)
    return parse_tier_map(text, source="x.yaml", folder=Path("/"))


def argv(index: int, flags: str = "tp: 1") -> str:
    parsed = tier_map(flags=flags)
    return " ".join(worker_argv(parsed, parsed.workers[index], python="python"))


def env(index: int, *, policy: str = "conserve", flags: str = "tp: 1") -> dict[str, str]:
    parsed = tier_map(policy=policy, flags=flags)
    return worker_env(parsed, parsed.workers[index])


def test_a_prefiller_has_its_mode_and_its_bootstrap_port() -> None:
    assert argv(0) == (
        "python -m sglang.launch_server --model-path Qwen/Qwen3-8B --served-model-name qwen"
        " --host 0.0.0.0 --port 31000 --tp-size 2 --disaggregation-mode prefill"
        " --disaggregation-transfer-backend nixl --disaggregation-bootstrap-port 31900"
    )


def test_a_decoder_has_what_local_turns_need() -> None:
    assert argv(1) == (
        "python -m sglang.launch_server --model-path Qwen/Qwen3-8B --served-model-name qwen"
        " --host 127.0.0.1 --port 31100 --device cpu --disaggregation-mode decode"
        " --disaggregation-transfer-backend nixl"
        " --disaggregation-decode-enable-radix-cache --enable-session-radix-cache"
        " --chunked-prefill-size 2048 --schedule-policy fcfs --enable-cache-report"
    )


def test_a_mixed_worker_is_not_disaggregated() -> None:
    assert "disaggregation" not in argv(2)


def test_the_flags_of_the_tier_override_our_defaults() -> None:
    line = argv(
        1,
        "sglang_flags: {chunked-prefill-size: 128, enable-cache-report: false,"
        " schedule-policy: null, skip-server-warmup: true, dtype: float32}",
    )
    assert "--chunked-prefill-size 128" in line
    assert "--enable-cache-report" not in line
    assert "--schedule-policy" not in line
    assert line.endswith("--skip-server-warmup --dtype float32")


def test_flags_set_by_fields_cannot_be_given_as_flags() -> None:
    """Else two values of one flag would reach SGLang; `host` is the one that may be narrowed."""
    parsed = tier_map()
    for worker in parsed.workers:
        assert list(worker_flags(parsed, worker))[:4] == [
            "model-path",
            "served-model-name",
            "host",
            "port",
        ]
    ours = {"model-path", "served-model-name", "port", "device", "tp-size"}
    ours |= {name for name in worker_flags(parsed, parsed.workers[0]) if "disagg" in name}
    assert ours <= set(OWNED_FLAGS)


def test_the_plugin_is_on_everywhere_and_local_prefill_on_decoders_alone() -> None:
    assert [env(index)["CONSERVE_ENABLED"] for index in range(3)] == ["1", "1", "1"]
    assert [env(index).get("CONSERVE_LOCAL_PREFILL") for index in range(3)] == [None, "1", None]


def test_local_prefill_is_off_under_a_policy_that_sends_no_local_turns() -> None:
    assert env(1, policy="stock-pd")["CONSERVE_LOCAL_PREFILL"] == "0"
    assert env(1, policy="colocated")["CONSERVE_LOCAL_PREFILL"] == "1"


def test_workers_that_keep_sessions_have_the_tree_for_it() -> None:
    found = [env(index).get("SGLANG_ENABLE_UNIFIED_RADIX_TREE") for index in range(3)]
    assert found == [None, "1", "1"]


def test_gpu_workers_see_their_own_gpus_alone() -> None:
    assert env(0)["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert "SGLANG_USE_CPU_ENGINE" not in env(0)


def test_cpu_workers_use_the_cpu_engine_and_tcp() -> None:
    found = env(1)
    assert found["SGLANG_USE_CPU_ENGINE"] == "1"
    assert found["MC_FORCE_TCP"] == "1"
    assert found["MOONCAKE_PROTOCOL"] == "tcp"
    assert found["CUDA_VISIBLE_DEVICES"] == ""


def test_a_model_in_a_folder_asks_no_hub() -> None:
    text = TEXT.replace("Qwen/Qwen3-8B", "./m").replace("POLICY", "conserve").replace("FLAGS", "")
    parsed = parse_tier_map(text, source="x.yaml", folder=Path("/maps"))
    assert worker_env(parsed, parsed.workers[0])["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in env(0)


def test_the_environment_of_the_tier_comes_last() -> None:
    assert env(1, flags='env: {OMP_NUM_THREADS: "2", X: y}')["OMP_NUM_THREADS"] == "2"
