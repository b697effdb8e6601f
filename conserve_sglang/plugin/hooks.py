"""The table of hooks: every place in SGLang this plugin reaches into, and with what.

Nothing else names a path in SGLang but the two adapters. `needed_for` says what would break.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from conserve_sglang.plugin import (
    abort,
    batching,
    continuing,
    guard,
    handoff,
    intake,
    phase_log,
    refuse,
    report,
    restored,
    transfers,
)
from conserve_sglang.plugin.inside import Inside

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
RESTORE = "sglang.srt.disaggregation.decode.DecodePreallocQueue.resume_retracted_reqs"
PICKER = "sglang.srt.managers.schedule_policy.PrefillAdder"
LOADS = "sglang.srt.managers.scheduler_components.load_inquirer.SchedulerLoadInquirer"
TOKENIZER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
TRANSFERS = "sglang.srt.disaggregation.decode.DecodeTransferQueue"
CHAT = "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat"
COMPLETION = "sglang.srt.entrypoints.openai.serving_completions.OpenAIServingCompletion"
REQUEST = "sglang.srt.managers.io_struct.GenerateReqInput"


class Kind(Enum):
    """SGLang's hook kinds, by the name of its `HookType` members."""

    BEFORE = "BEFORE"
    AFTER = "AFTER"
    AROUND = "AROUND"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One function of SGLang, and what is put around it."""

    target: str
    kind: Kind
    body: Callable[..., Any]
    needed_for: str


def decoder_hooks(inside: Inside) -> tuple[Hook, ...]:
    """What the scheduler process of a decode server needs."""

    def around(target: str, body: Callable[..., Any], needed_for: str) -> Hook:
        bound = partial(body, inside)
        return Hook(target=target, kind=Kind.AROUND, body=bound, needed_for=needed_for)

    def after(target: str, body: Callable[..., Any], needed_for: str) -> Hook:
        bound = partial(body, inside)
        return Hook(target=target, kind=Kind.AFTER, body=bound, needed_for=needed_for)

    prebuilt = f"{SCHEDULER}.{inside.adapter.prebuilt_method}"
    return (
        around(
            f"{SCHEDULER}.handle_generate_request",
            intake.handle_generate_request,
            "marked requests pass the gate",
        ),
        around(
            f"{SCHEDULER}._add_request_to_queue",
            intake.add_request_to_queue,
            "local requests are queued for prefill, or refused",
        ),
        around(prebuilt, batching.get_prebuilt_batch, "only requests with KV count as transferred"),
        around(
            f"{SCHEDULER}.get_next_disagg_decode_batch_to_run",
            batching.get_next_batch,
            "local requests are prefilled",
        ),
        around(
            f"{PICKER}.add_one_req",
            batching.add_one_req,
            "a request that lost its prefix while queued is refused",
        ),
        around(RESTORE, restored.resume_retracted_reqs, "retracted requests are not held up"),
        around(f"{SCHEDULER}.abort_request", abort.abort_request, "queued local turns can abort"),
        around(
            f"{TRANSFERS}._commit_transfer_to_req",
            handoff.commit_transfer,
            "a continued answer goes on where it was",
        ),
        _capability(inside),
        after(
            f"{LOADS}.get_num_waiting_uncached_tokens",
            report.get_num_waiting_uncached_tokens,
            "queued local turns count as load",
        ),
        after(f"{LOADS}.get_loads", report.get_loads, "queued local turns count as load"),
    )


def prefiller_hooks(inside: Inside) -> tuple[Hook, ...]:
    """What the scheduler process of a prefill server needs to take part in continued answers."""
    return (_capability(inside),)


def _capability(inside: Inside) -> Hook:
    return Hook(
        target=f"{SCHEDULER}.get_internal_state",
        kind=Kind.AFTER,
        body=partial(report.get_internal_state, inside),
        needed_for="the router recognises what a server can do",
    )


def front_hooks(inside: Inside) -> tuple[Hook, ...]:
    """What the HTTP process of a server needs."""

    def around(target: str, body: Callable[..., Any], needed_for: str) -> Hook:
        bound = partial(body, inside)
        return Hook(target=target, kind=Kind.AROUND, body=bound, needed_for=needed_for)

    shared = (
        around(
            f"{TOKENIZER}._create_tokenized_object",
            continuing.create_tokenized_object,
            "a continued answer's tokens are prefilled",
        ),
        around(
            f"{TOKENIZER}.generate_request",
            continuing.generate_request,
            "a continued answer makes its steps again",
        ),
    )
    if not inside.settings.local_prefill:
        return shared
    return (
        *shared,
        *(
            around(
                f"{owner}.{name}", continuing.generate_events, "token ids are told in the stream"
            )
            for owner, name in (
                (CHAT, "_generate_chat_stream"),
                (COMPLETION, "_generate_completion_stream"),
            )
        ),
        Hook(
            target=f"{REQUEST}.__getitem__",
            kind=Kind.AROUND,
            body=intake.get_item,
            needed_for="the mark survives n > 1 and lists of prompts",
        ),
        Hook(
            target=f"{TOKENIZER}._handle_abort_finish_reason",
            kind=Kind.AROUND,
            body=refuse.handle_abort_finish_reason,
            needed_for="a refusal reaches the router",
        ),
    )


def observer_hooks(inside: Inside) -> tuple[Hook, ...]:
    """What the scheduler process of a prefill server needs to count its transfers."""
    return (
        Hook(
            target=f"{SCHEDULER}.send_kv_chunk",
            kind=Kind.AROUND,
            body=partial(transfers.send_kv_chunk, inside),
            needed_for="KV transfers are counted",
        ),
    )


def phase_hooks(inside: Inside) -> tuple[Hook, ...]:
    """What the scheduler process of any server needs to log its batches."""
    bodies = phase_log.PhaseHooks(inside)
    return tuple(
        Hook(
            target=f"{SCHEDULER}.{name}",
            kind=Kind.AROUND,
            body=body,
            needed_for="batches are logged",
        )
        for name, body in (
            ("run_batch", bodies.run_batch),
            ("process_batch_result", bodies.process_batch_result),
        )
    )


def guards(hooks: tuple[Hook, ...], inside: Inside, *, is_scheduler: bool) -> tuple[Hook, ...]:
    """The checks that run once the hooks should be in force."""
    targets = tuple((hook.target, hook.body) for hook in hooks)
    owner = SCHEDULER if is_scheduler else TOKENIZER
    checked = [
        Hook(
            target=f"{owner}.__init__",
            kind=Kind.BEFORE,
            body=partial(guard.before_init, targets, inside, is_scheduler),
            needed_for="a server that cannot serve refuses to start",
        )
    ]
    if is_scheduler and inside.settings.local_prefill:
        checked.append(
            Hook(
                target=f"{SCHEDULER}.init_disaggregation",
                kind=Kind.AFTER,
                body=guard.after_init_disaggregation,
                needed_for="a model that cannot be served is refused",
            )
        )
    return tuple(checked)
