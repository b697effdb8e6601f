"""The Grafana dashboard over the metrics the router exports: its panels, and their JSON."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HERE = 'instance=~"$instance"'
_TIER = 'instance=~"$instance",tier=~"$tier"'
_WIDTH = 24


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: queries, each with its legend."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    says: str = ""
    width: int = 8
    kind: str = "timeseries"
    stacks: bool = False
    most: float | None = None


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({name}{{{_HERE}}}[$__rate_interval]))"


def _quantiles(name: str) -> tuple[tuple[str, str], ...]:
    inside = f"sum by (le, tier, role) (rate({name}_bucket{{{_TIER}}}[$__rate_interval]))"
    return tuple(
        (f"histogram_quantile({share}, {inside})", f"{{{{tier}}}} {{{{role}}}} p{share * 100:g}")
        for share in (0.5, 0.95)
    )


def _worker(name: str) -> str:
    return f"conserve_worker_{name}{{{_TIER}}}"


def _total(name: str) -> str:
    return f"sum(rate({name}{{{_HERE}}}[$__rate_interval]))"


def _now(name: str) -> str:
    return f"sum({name}{{{_HERE}}})"


_JOULES = "conserve_router_energy_joules_total"
_POWER = f"sum by (instance, origin) (rate({_JOULES}{{{_HERE}}}[$__rate_interval]))"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel("Workers up", "none", ((f"sum({_worker('up')})", ""),), width=4, kind="stat"),
            Panel("Conversations", "short", ((_now("conserve_router_conversations"), ""),),
                  width=4, kind="stat"),
            Panel("Open turns", "short", ((_now("conserve_router_open_turns"), ""),),
                  width=4, kind="stat"),
            Panel("Queued turns", "short", ((_now("conserve_router_queued_turns"), ""),),
                  width=4, kind="stat"),
            Panel("Turns/s", "short", ((_total("conserve_router_turns_total"), ""),),
                  width=4, kind="stat"),
            Panel("Output tokens/s", "short",
                  ((_total("conserve_router_output_tokens_total"), ""),), width=4, kind="stat"),
        ),
    ),
    (
        "Latency at the router, by the decoder's tier and the role that prefilled",
        (
            Panel("TTFET", "s", _quantiles("conserve_router_ttfet_seconds"),
                  "Turn 1's arrival to the first byte of the first answer that calls no tool.", 12),
            Panel("TTFT", "s", _quantiles("conserve_router_ttft_seconds"), "", 12),
            Panel("TBT", "s", _quantiles("conserve_router_tbt_seconds"),
                  "One mean gap per streamed turn.", 12),
            Panel("E2E of a turn", "s", _quantiles("conserve_router_e2e_seconds"), "", 12),
        ),
    ),
    (
        "Turns and placement",
        (
            Panel("Turns by how they ended", "reqps",
                  ((_rate("conserve_router_turns_total", "outcome"), "{{outcome}}"),), stacks=True),
            Panel("Placements by reason", "reqps",
                  ((_rate("conserve_router_placements_total", "reason"), "{{reason}}"),),
                  stacks=True),
            Panel("New phase 1 by cause", "reqps",
                  ((_rate("conserve_router_phase_one_reentries_total", "cause"), "{{cause}}"),),
                  stacks=True),
            Panel("Failed attempts and retries", "reqps",
                  ((_rate("conserve_router_failed_attempts_total", "cause"), "{{cause}}"),
                   (_total("conserve_router_retries_total"), "retries"))),
            Panel("Streams interrupted and gone on with", "reqps",
                  ((_total("conserve_router_interruptions_total"), "interrupted"),
                   (_total("conserve_router_continuations_total"), "gone on with"))),
            Panel("Turns not served", "reqps",
                  ((_rate("conserve_router_rejections_total", "reason"), "{{reason}}"),
                   (_total("conserve_router_unauthorized_total"), "no valid key"))),
            Panel("Tokens/s", "short",
                  ((_total("conserve_router_prompt_tokens_total"), "prompt"),
                   (_total("conserve_router_cached_tokens_total"), "of these cached"),
                   (_total("conserve_router_output_tokens_total"), "output"))),
        ),
    ),
    (
        "KV",
        (
            Panel("KV occupancy by ledger", "percentunit",
                  ((f"({_worker('kv_resident_tokens')} + {_worker('kv_reserved_tokens')})"
                    f" / {_worker('kv_capacity_tokens')}", "{{worker}}"),),
                  "Resident and reserved over capacity.", most=1.0),
            Panel("KV occupancy as reported", "percentunit",
                  ((f"{_worker('kv_held_tokens')} / {_worker('kv_capacity_tokens')}",
                    "{{worker}}"),), "All the plugin says is held.", most=1.0),
            Panel("Reported less resident by ledger", "short",
                  ((_worker("kv_difference_tokens"), "{{worker}}"),),
                  "Below zero: the ledger counts on KV that is gone."),
            Panel("KV transfers", "reqps",
                  ((_total("conserve_router_kv_transfers_total"), "transfers"),
                   (_total("conserve_router_kv_misses_total"), "tail turns without their KV"))),
            Panel("KV moved", "short",
                  ((_total("conserve_router_kv_transferred_tokens_total"), "tokens/s"),)),
            Panel("KV moved, where a token's size is known", "Bps",
                  ((_total("conserve_router_kv_transferred_bytes_total"), "bytes/s"),)),
        ),
    ),
    (
        "Workers",
        (
            Panel("Up", "none", ((_worker("up"), "{{worker}}"),), most=1.0),
            Panel("Given turns, of those up", "none", ((_worker("takes_turns"), "{{worker}}"),),
                  "0 while draining, or while the circuit breaker is open.", most=1.0),
            Panel("Circuit breaker", "none",
                  ((_worker("breaker"), "{{worker}}"),
                   (f"increase({_worker('breaker_openings_total')}[$__rate_interval])",
                    "{{worker}} opened")),
                  "0 closed, 1 half-open, 2 open."),
            Panel("KV of other replicas", "short",
                  ((_worker("kv_foreign_tokens"), "{{worker}}"),)),
            Panel("Conversations pinned", "short",
                  ((_worker("conversations"), "{{worker}}"),)),
            Panel("Prefill backlog", "short", ((_worker("backlog_tokens"), "{{worker}}"),),
                  "Prompt tokens sent and not yet prefilled."),
            Panel("Running turns, as reported", "short",
                  ((_worker("running_turns"), "{{worker}}"),)),
            Panel("Turns waiting in the worker, as reported", "short",
                  ((_worker("waiting_turns"), "{{worker}}"),)),
            Panel("KV of running turns, as reported", "short",
                  ((_worker("kv_used_tokens"), "{{worker}}"),)),
        ),
    ),
    (
        "Energy, where agents read it; idle apart; each series says whether it is modelled",
        (
            Panel("Power by phase", "watt",
                  ((f"sum by (phase, origin) (rate({_JOULES}{{{_TIER}}}[$__rate_interval]))",
                    "{{phase}}, {{origin}}"),), stacks=True),
            Panel("Power of workers", "watt",
                  ((f"sum by (worker, origin, split) ({_worker('power_watts')})",
                    "{{worker}}, {{origin}}, {{split}}"),),
                  "attributed: several workers share a device, which is split by their work."),
            Panel("Power of devices", "watt",
                  ((f"conserve_device_power_watts{{{_HERE}}}",
                    "{{host}} {{device}}, {{origin}}"),)),
            Panel("Energy per token", "joule",
                  ((f"{_POWER} / on (instance) group_left () sum by (instance)"
                    f" (rate(conserve_router_output_tokens_total{{{_HERE}}}[$__rate_interval]))",
                    "per output token, {{origin}}"),
                   (f"{_POWER} / on (instance) group_left () sum by (instance)"
                    f" (rate(conserve_router_output_tokens_total{{{_HERE}}}[$__rate_interval])"
                    f" + rate(conserve_router_prompt_tokens_total{{{_HERE}}}[$__rate_interval]))",
                    "per counted token, {{origin}}")),
                  "All energy, idle included. Counted: prompt and output of each turn."),
            Panel("Energy of devices since their agents began", "joule",
                  ((f"conserve_device_energy_joules_total{{{_HERE}}}",
                    "{{host}} {{device}}, {{origin}}"),)),
            Panel("Agents", "s",
                  ((f"conserve_agent_settled_age_seconds{{{_HERE}}}", "{{host}}: books behind"),
                   (f"conserve_agent_up{{{_HERE}}}", "{{host}}: up"))),
            Panel("What the books lack", "short",
                  ((_rate("conserve_agent_late_seconds_total", "host"), "{{host}}: billed as idle"),
                   (_rate("conserve_agent_outside_profile_total", "host"),
                    "{{host}}: outside profiles, per s"),
                   (f"increase(conserve_agent_lost_log_files_total{{{_HERE}}}[$__rate_interval])",
                    "{{host}}: log files lost"),
                   (f"increase(conserve_agent_refused_windows_total{{{_HERE}}}[$__rate_interval])",
                    "{{host}}: counters reset"),
                   (f"increase(conserve_agent_gaps_total{{{_HERE}}}[$__rate_interval])",
                    "{{host}}: turns' joules forgotten"),
                   (f"conserve_agent_unmeasured_workers{{{_HERE}}}",
                    "{{host}}: workers not measured"))),
        ),
    ),
    (
        "Power budget, where there is one",
        (
            Panel("Power and its budget", "watt",
                  ((f"conserve_power_watts{{{_HERE}}}", "drawn, measured"),
                   (f"conserve_power_budget_watts{{{_HERE}}}", "budget"))),
            Panel("Cap of each GPU of a tier", "watt",
                  ((f'conserve_power_cap_watts{{{_HERE},tier=~"$tier"}}', "{{tier}}"),)),
            Panel("Turns that may run at once", "short",
                  ((f"conserve_power_max_running_turns{{{_HERE}}}", "bound"),)),
            Panel("Moves", "short",
                  ((_rate("conserve_power_moves_total", "kind, reason"), "{{kind}}: {{reason}}"),)),
            Panel("Share of time over budget", "percentunit",
                  ((_total("conserve_power_over_budget_periods_total"), "over"),), most=1.0),
            Panel("Cannot be kept", "none",
                  ((f"conserve_power_blind{{{_HERE}}}", "nothing is measured"),
                   (f"conserve_power_infeasible{{{_HERE}}}", "below the least caps")), most=1.0),
        ),
    ),
    (
        "Tenants",
        (
            Panel("Turns", "reqps",
                  ((_rate("conserve_tenant_turns_total", "tenant"), "{{tenant}}"),), stacks=True),
            Panel("Output tokens/s", "short",
                  ((_rate("conserve_tenant_output_tokens_total", "tenant"), "{{tenant}}"),),
                  stacks=True),
            Panel("Turns not served", "reqps",
                  ((_rate("conserve_tenant_rejections_total", "tenant"), "{{tenant}}"),)),
        ),
    ),
    (
        "The router's process",
        (
            Panel("Memory", "bytes",
                  ((f"process_resident_memory_bytes{{{_HERE}}}"
                    " and on (instance) conserve_router_build_info", "{{instance}}"),)),
            Panel("Open file descriptors", "short",
                  ((f"process_open_fds{{{_HERE}}} and on (instance) conserve_router_build_info",
                    "{{instance}}"),)),
            Panel("CPU", "percentunit",
                  ((f"rate(process_cpu_seconds_total{{{_HERE}}}[$__rate_interval])"
                    " and on (instance) conserve_router_build_info", "{{instance}}"),)),
            Panel("Ready for new conversations", "none",
                  ((f"conserve_router_ready{{{_HERE}}}", "{{instance}}"),),
                  "0: a worker that the policy needs for them is missing.", most=1.0),
            Panel("Certificate, time left", "s",
                  ((f"conserve_router_tls_certificate_expiry_timestamp_seconds{{{_HERE}}} - time()",
                    "{{instance}} {{listener}}"),)),
        ),
    ),
)  # fmt: skip


def queries() -> Iterator[str]:
    """Every PromQL expression of the dashboard."""
    for _, panels in ROWS:
        for panel in panels:
            for expression, _ in panel.queries:
                yield expression


def dashboard() -> dict[str, Any]:
    """The document Grafana imports."""
    return {
        "uid": "conserve-sglang",
        "title": "conserve-sglang",
        "tags": ["conserve-sglang"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _variable("instance"), _variable("tier")]},
        "panels": list(_laid_out()),
    }


def dashboard_json() -> str:
    """The same as text."""
    return json.dumps(dashboard(), indent=1) + "\n"


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "data source", "type": "datasource",
            "query": "prometheus"}  # fmt: skip


def _variable(label: str) -> dict[str, Any]:
    source = {"instance": "conserve_router_build_info", "tier": "conserve_worker_up"}[label]
    return {
        "name": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": f"label_values({source}, {label})", "refId": label},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _laid_out() -> Iterator[dict[str, Any]]:
    number, x, y = 0, 0, 0
    for title, panels in ROWS:
        number += 1
        at = {"h": 1, "w": _WIDTH, "x": 0, "y": y}
        yield {"id": number, "type": "row", "title": title, "gridPos": at, "panels": []}
        x, y = 0, y + 1
        height = 4 if panels[0].kind == "stat" else 8
        for panel in panels:
            if x + panel.width > _WIDTH:
                x, y = 0, y + height
            number += 1
            at = {"h": height, "w": panel.width, "x": x, "y": y}
            yield _panel(panel, number, at)
            x += panel.width
        y += height


def _panel(panel: Panel, number: int, at: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    custom: dict[str, Any] = {"fillOpacity": 10, "lineWidth": 1, "showPoints": "never"}
    if panel.stacks:
        custom |= {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "custom": custom}
    if "less" in panel.title:
        del defaults["min"]
    if panel.most is not None:
        defaults["max"] = panel.most
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "gridPos": at,
        "datasource": source,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}}
        if panel.kind == "timeseries"
        else {"reduceOptions": {"calcs": ["lastNotNull"]}},
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "datasource": source,
                "expr": expression,
                "legendFormat": legend,
            }
            for n, (expression, legend) in enumerate(panel.queries)
        ],
    }
