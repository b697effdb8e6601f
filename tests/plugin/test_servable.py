from typing import Any

import pytest

from conserve_sglang.plugin.servable import argument_problems, chunk_problems, model_problems

GOOD: dict[str, Any] = {
    "disaggregation_mode": "decode",
    "disaggregation_decode_enable_radix_cache": True,
    "enable_session_radix_cache": True,
    "pp_size": 1,
    "dp_size": 1,
    "schedule_policy": "fcfs",
    "disaggregation_decode_host_receive_threshold": 1.0,
}


def test_a_plain_decode_server_is_servable() -> None:
    assert argument_problems(GOOD, is_rust_server=False) == []


@pytest.mark.parametrize(
    ("name", "value", "flag"),
    [
        ("disaggregation_mode", "prefill", "--disaggregation-mode"),
        ("disaggregation_decode_enable_radix_cache", False, "--disaggregation-decode-enable-radix"),
        ("enable_session_radix_cache", False, "--enable-session-radix-cache"),
        ("pp_size", 2, "--pp-size"),
        ("dp_size", 2, "--dp-size"),
        ("dcp_size", 2, "--dcp-size"),
        ("enable_dp_attention", True, "DP attention"),
        ("speculative_algorithm", "EAGLE", "--speculative-algorithm"),
        ("enable_mixed_chunk", True, "--enable-mixed-chunk"),
        ("enable_hisparse", True, "--enable-hisparse"),
        ("dllm_algorithm", "x", "--dllm-algorithm"),
        ("enable_pdmux", True, "--enable-pdmux"),
        ("enable_pd_role_switch", True, "--enable-pd-role-switch"),
        ("enable_streaming_session", True, "--enable-streaming-session"),
        ("disaggregation_decode_host_receive_threshold", 0.5, "host-receive-threshold"),
        ("tokenizer_worker_num", 2, "--tokenizer-worker-num"),
        ("schedule_policy", "lpm", "--schedule-policy"),
        ("enable_priority_scheduling", True, "--disable-priority-preemption"),
    ],
)
def test_each_bad_argument_is_named(name: str, value: object, flag: str) -> None:
    problems = argument_problems({**GOOD, name: value}, is_rust_server=False)
    assert len(problems) == 1
    assert flag in problems[0]


def test_the_rust_front_end_is_named() -> None:
    assert "SGLANG_RUST_SERVER" in argument_problems(GOOD, is_rust_server=True)[0]


@pytest.mark.parametrize(
    ("chunk", "page", "align", "count"),
    [
        (2048, 16, None, 0),
        (None, 1, None, 1),
        (4096, 1, None, 1),
        (100, 16, None, 1),
        (64, 1, 128, 1),
    ],
)
def test_the_chunk_must_fit(chunk: int | None, page: int, align: int | None, count: int) -> None:
    assert len(chunk_problems(chunk, page, align)) == count


def test_models_that_were_not_tried_are_named() -> None:
    problems = model_problems(is_hybrid_swa=True, is_hybrid_ssm=True, is_multimodal=True)
    assert len(problems) == 3
