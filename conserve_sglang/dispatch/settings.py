"""The bounds of the dispatcher's work."""

from dataclasses import dataclass

from conserve_sglang.core.tier import RouterSettings

PROBES_A_PAUSE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """Bounds of the dispatcher's work.

    `max_phase_one_turns` may wait for a place, `max_tail_turns` behind their own conversation;
    of both kinds together a tenant may have `max_turns_per_tenant` (None: no bound of its own).
    `max_prefill_backlog_tokens`: a prefiller with so many prompt tokens before it is sent no more,
    so that those who wait do so here, where their order is fair. `max_conversations` may live,
    `max_conversations_per_tenant` of one tenant; the longest idle make room for new ones.

    `reserve_output_tokens` is the room set aside for a turn's answer while it runs: a constant,
    as SGLang's own `--num-reserved-decode-tokens`, not a guess at the answer's length.
    `reclaim_idle_s`: while a turn waits for KV room, conversations idle for longer are let go,
    the longest idle first. `prefix_slack_tokens`: how much of the previous prompt may be missing
    (page rounding) before the prefix counts as gone. `is_fair` off: plain arrival order, whoever
    the tenants are. `busy_s`: for so long after a worker said that it is busy, no turn is tried
    there that another worker has refused as busy; see `busy`. `retry_pause_s`: a turn that failed
    more than once goes back to a worker that failed it only behind such a pause, in which the
    router probes every worker, if its deadline lets it wait so long.
    """

    max_phase_one_turns: int = 1024
    max_tail_turns: int = 1024
    max_turns_per_tenant: int | None = None
    queue_timeout_s: float = 60.0
    max_prefill_backlog_tokens: int = 16_384
    max_conversations: int = 1_000_000
    max_conversations_per_tenant: int | None = None
    conversation_ttl_s: float = 3600.0
    reclaim_idle_s: float = 15.0
    reserve_output_tokens: int = 512
    max_attempts: int = 3
    max_continuations: int = 2
    prefix_slack_tokens: int = 128
    is_fair: bool = True
    busy_s: float = 1.0
    retry_pause_s: float = 1.5

    def __post_init__(self) -> None:
        for name in (
            "max_phase_one_turns",
            "max_tail_turns",
            "reserve_output_tokens",
            "prefix_slack_tokens",
            "max_continuations",
            "busy_s",
            "retry_pause_s",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("max_attempts", "max_prefill_backlog_tokens", "max_conversations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("max_turns_per_tenant", "max_conversations_per_tenant"):
            bound = getattr(self, name)
            if bound is not None and bound < 1:
                raise ValueError(f"{name} must be at least 1, or None")


def dispatch_settings(router: RouterSettings) -> DispatchSettings:
    """The bounds a tier map sets."""
    overload = router.overload
    return DispatchSettings(
        max_phase_one_turns=overload.max_phase_one_turns,
        max_tail_turns=overload.max_tail_turns,
        max_turns_per_tenant=overload.max_turns_per_tenant,
        queue_timeout_s=router.queue_timeout_s,
        max_prefill_backlog_tokens=overload.max_prefill_backlog_tokens,
        max_conversations=overload.max_conversations,
        max_conversations_per_tenant=overload.max_conversations_per_tenant,
        conversation_ttl_s=router.conversation_ttl_s,
        reclaim_idle_s=router.reclaim_idle_s,
        reserve_output_tokens=router.reserve_output_tokens,
        max_attempts=router.max_attempts,
        max_continuations=router.max_continuations,
        is_fair=overload.is_fair,
        retry_pause_s=PROBES_A_PAUSE * router.health.probe_interval_s,
    )
