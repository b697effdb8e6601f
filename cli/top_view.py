"""How `top` looks: a head of a few lines, then the workers by tier. Narrow terminals get less."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from conserve_sglang.telemetry.overview import Overview, RouterRow, WorkerRow

UNKNOWN = "-"
_STATES = {"up": "green", "no turns": "yellow", "not up": "bold red"}
_BREAKERS = {"closed": "green", "half_open": "yellow", "open": "bold red"}


def picture(seen: Overview, url: str, width: int, trouble: str | None = None) -> RenderableType:
    """Everything, for a terminal of this width; `trouble` says why it is not of now."""
    parts: list[RenderableType] = [_title(seen.router, url), _traffic(seen.router)]
    parts += [_latencies(seen.router), _workers(seen.workers, width)]
    if trouble is not None:
        parts.insert(1, Text(trouble, style="bold red"))
    return Group(*parts)


def _title(router: RouterRow, url: str) -> Text:
    up = "" if router.up_s is None else f" · up {_duration(router.up_s)}"
    return Text.assemble(
        ("conserve-sglang top", "bold"), f" · {url.split('://', 1)[1]} · {router.policy}",
        (f" · {router.version}{up}", "dim"),
    )  # fmt: skip


def _traffic(router: RouterRow) -> Text:
    cached = ""
    if router.prompt_tokens_per_s and router.cached_tokens_per_s is not None:
        cached = f" ({router.cached_tokens_per_s / router.prompt_tokens_per_s:.0%} cached)"
    queued = " + ".join(
        f"{number:,} {phase.replace('_', ' ')}"
        for phase, number in router.queued_turns.items()
        if number
    )
    line = _spaced(
        ("turns/s", _number(router.turns_per_s)),
        ("tokens/s out", _number(router.output_tokens_per_s)),
        ("in", _number(router.prompt_tokens_per_s) + cached),
        ("KV moves/s", _number(router.kv_transfers_per_s)),
        ("open", f"{router.num_open_turns:,}"),
        ("queued", queued or "0"),
        ("conversations", f"{router.num_conversations:,}"),
    )
    if router.watts is not None and router.energy_origin is not None:
        line.append("  watts ", style="dim").append(_number(router.watts), style="bold")
        if router.joules_per_output_token is not None:
            line.append("  J/token out ", style="dim")
            line.append(f"{router.joules_per_output_token:.3g}", style="bold")
        line.append(f" ({router.energy_origin})", style="dim")
    for name, value in (
        ("retries/s", router.retries_per_s),
        ("rejected/s", router.rejections_per_s),
    ):
        if value:
            line.append(f"  {name} {_number(value)}", style="yellow")
    return line


def _latencies(router: RouterRow) -> Text:
    shown = ((name.upper(), router.latency_s[name]) for name in router.latency_s)
    parts = [(name, f"{_time(p50)}/{_time(p95)}") for name, (p50, p95) in shown]
    return Text("p50/p95  ", style="dim").append_text(_spaced(*parts))


def _spaced(*pairs: tuple[str, str]) -> Text:
    line = Text()
    for name, value in pairs:
        if line:
            line.append("  ")
        line.append(f"{name} ", style="dim")
        line.append(value, style="bold")
    return line


@dataclass(frozen=True, slots=True)
class _Column:
    """A column, its width, and the least terminal width it is shown at; width 0: a bar."""

    head: str
    cell: Callable[[WorkerRow, int], Text]
    width: int
    least: int = 0
    is_number: bool = False


def _workers(rows: tuple[WorkerRow, ...], width: int) -> Table:
    columns = [column for column in _COLUMNS if column.least <= width]
    longest = max((len(name) for row in rows for name in (_tier(row), f"  {row.name}")), default=6)
    taken = longest + sum(column.width + 2 for column in columns)
    num_bars = sum(not column.width for column in columns)
    bar = max(4, min(20, (width - taken) // num_bars - 5))  # and the percentage
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("worker", no_wrap=True, min_width=longest)
    for column in columns:
        table.add_column(column.head, justify="right" if column.is_number else "left", no_wrap=True)
    tier = None
    for row in sorted(rows, key=lambda row: (row.tier, row.name)):
        if row.tier != tier:
            tier = row.tier
            table.add_row(Text(_tier(row), style="bold cyan"))
        table.add_row(Text(f"  {row.name}"), *(column.cell(row, bar) for column in columns))
    return table


def _tier(row: WorkerRow) -> str:
    return f"{row.tier} ({row.role})"


def _ledger(row: WorkerRow, width: int) -> Text:
    if not row.capacity_tokens or row.role == "prefill":
        return Text(UNKNOWN, style="dim")
    resident = row.resident_tokens / row.capacity_tokens
    reserved = row.reserved_tokens / row.capacity_tokens
    return _bar(width, (resident, "blue"), (reserved, "cyan"))


def _reported(row: WorkerRow, width: int) -> Text:
    if row.held_tokens is None or not row.capacity_tokens:
        return Text(UNKNOWN, style="dim")
    return _bar(width, (row.held_tokens / row.capacity_tokens, "magenta"))


def _bar(width: int, *parts: tuple[float, str]) -> Text:
    """Parts of a whole, then their sum in percent; red from 95 % on."""
    total = sum(share for share, _ in parts)
    line, used = Text(), 0
    reached = 0.0
    for share, style in parts:
        reached += share
        cells = min(width, round(reached * width)) - used
        line.append("█" * cells, style="red" if total >= 0.95 else style)
        used += cells
    line.append("·" * (width - used), style="dim")
    return line.append(f" {total:4.0%}")


def _styled(value: str | None, styles: dict[str, str]) -> Text:
    if value is None:
        return Text(UNKNOWN, style="dim")
    return Text(value.replace("_", " "), style=styles.get(value, ""))


def _watts(value: float | None, origin: str | None) -> Text:
    """Never without its origin."""
    if value is None or origin is None:
        return Text(UNKNOWN, style="dim")
    return Text(_number(value)).append(f" {origin}", style="dim")


def _cell(value: float | None) -> Text:
    return Text(UNKNOWN, style="dim") if value is None else Text(_number(value))


_COLUMNS = (
    _Column("state", lambda row, bar: _styled(row.state, _STATES), 8),
    _Column("breaker", lambda row, bar: _styled(row.breaker, _BREAKERS), 9, 72),
    _Column("KV by ledger", _ledger, 0),
    _Column("as reported", _reported, 0, 64),
    _Column("convs", lambda row, bar: _cell(row.num_conversations), 5, 48, True),
    _Column("running", lambda row, bar: _cell(row.num_running), 7, 88, True),
    _Column("waiting", lambda row, bar: _cell(row.num_waiting), 7, 96, True),
    _Column("backlog", lambda row, bar: _cell(row.backlog_tokens), 7, 80, True),
    _Column("watts", lambda row, bar: _watts(row.watts, row.power_origin), 14, 112, True),
)


def _number(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= bound:
            return f"{value / (1e3 if unit == 'k' else bound):.1f}{unit}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    value, unit = (seconds * 1000, "ms") if seconds < 1 else (seconds, "s")
    return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}{unit}"


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} days"
