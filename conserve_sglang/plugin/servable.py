"""Which servers cannot take local turns: one sentence for each reason, none when all is well.

Every rule names the flag and what to use instead. Most of these settings have a path of their own
through SGLang's scheduler that the hooks do not follow, or that was never seen running with them.
"""

from collections.abc import Callable, Mapping
from typing import Any

MAX_CHUNK = 2048
"""Tokens of activation memory that SGLang sets aside on a decode server."""


def _above_one(value: Any) -> bool:
    return value is not None and int(value) > 1


def _below_one(value: Any) -> bool:
    return value is not None and float(value) < 1


def _missing(value: Any) -> bool:
    return not value


_ARGUMENT_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "disaggregation_decode_enable_radix_cache",
        _missing,
        "without --disaggregation-decode-enable-radix-cache nothing stays resident: add it",
    ),
    (
        "enable_session_radix_cache",
        _missing,
        "without --enable-session-radix-cache idle conversations are evicted first: add it",
    ),
    ("pp_size", _above_one, "--pp-size above 1 has another event loop: use --tp-size instead"),
    ("dp_size", _above_one, "--dp-size above 1 hides decoders: start one server per replica"),
    ("enable_dp_attention", bool, "DP attention needs all ranks to decide alike: leave it off"),
    ("dcp_size", _above_one, "--dcp-size above 1 is untested with local prefill: leave it at 1"),
    ("speculative_algorithm", bool, "--speculative-algorithm is untested here: leave it off"),
    ("enable_mixed_chunk", bool, "--enable-mixed-chunk mixes decode into prefill: leave it off"),
    ("enable_hisparse", bool, "--enable-hisparse has its own admission: leave it off"),
    ("dllm_algorithm", bool, "--dllm-algorithm has its own scheduling: leave it off"),
    ("enable_pdmux", bool, "--enable-pdmux has another event loop: leave it off"),
    ("enable_pd_role_switch", bool, "--enable-pd-role-switch rebuilds the queues: leave it off"),
    (
        "enable_streaming_session",
        bool,
        "--enable-streaming-session breaks when a turn is retracted: use"
        " --enable-session-radix-cache alone",
    ),
    (
        "disaggregation_decode_host_receive_threshold",
        _below_one,
        "--disaggregation-decode-host-receive-threshold below 1 receives into host memory: use 1",
    ),
    (
        "tokenizer_worker_num",
        _above_one,
        "--tokenizer-worker-num above 1 starts workers without plugins: use 1",
    ),
    (
        "schedule_policy",
        lambda value: value not in (None, "fcfs"),
        "this --schedule-policy orders by what a decode server does not compute: use fcfs",
    ),
)


def argument_problems(arguments: Mapping[str, Any], *, is_rust_server: bool) -> list[str]:
    """Reasons found in the server arguments alone; one SGLang does not have is left out."""
    problems = []
    if arguments.get("disaggregation_mode") != "decode":
        problems.append(
            "CONSERVE_LOCAL_PREFILL=1 is for decode servers: set it only where"
            " --disaggregation-mode is decode"
        )
    for name, is_bad, sentence in _ARGUMENT_RULES:
        if name in arguments and is_bad(arguments[name]):
            problems.append(sentence)
    preempts = not arguments.get("disable_priority_preemption", False)
    if arguments.get("enable_priority_scheduling") and preempts:
        problems.append(
            "--enable-priority-scheduling preempts running turns: add"
            " --disable-priority-preemption, or leave it off"
        )
    if is_rust_server:
        problems.append("SGLANG_RUST_SERVER=1 starts a front end without plugins: unset it")
    return problems


def chunk_problems(chunk: int | None, page_size: int, align: int | None) -> list[str]:
    """Reasons found in the chunk size, once SGLang has settled it."""
    if chunk is None:
        return [
            "chunked prefill is off, and a decode server reserves no memory for a whole prompt:"
            f" use --chunked-prefill-size {MAX_CHUNK}"
        ]
    problems = []
    if chunk > MAX_CHUNK:
        problems.append(
            f"--chunked-prefill-size {chunk} exceeds the {MAX_CHUNK} tokens of activations that a"
            f" decode server reserves: use {MAX_CHUNK} or less"
        )
    if chunk % page_size:
        problems.append(
            f"--chunked-prefill-size {chunk} is no multiple of --page-size {page_size}:"
            f" use {max(page_size, chunk // page_size * page_size)}"
        )
    if align is not None and chunk < align:
        problems.append(
            f"chunks are aligned to {align} tokens, more than --chunked-prefill-size {chunk}:"
            f" use at least {align}"
        )
    return problems


def model_problems(*, is_hybrid_swa: bool, is_hybrid_ssm: bool, is_multimodal: bool) -> list[str]:
    """Reasons found in the model."""
    problems = []
    if is_hybrid_swa:
        problems.append("the model has sliding-window layers, untested here: use full attention")
    if is_hybrid_ssm:
        problems.append("the model has state-space layers, untested here: use full attention")
    if is_multimodal:
        problems.append("the model is multimodal, and a decode server builds no encoder: use text")
    return problems
