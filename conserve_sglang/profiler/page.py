"""One self-contained page of a profile: what it holds for, its points drawn, its own error.

Needs matplotlib (the extra `report`).
"""

import html
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.profiles import LeftOut, PrefillPoint, Profile, Provenance

NOT_INSTALLED = "the page of plots needs matplotlib: pip install 'conserve-sglang[report]'"
_PLACES = {
    "prefill": "batch {0:,.0f}, {1:,.0f} cached and {2:,.0f} new tokens each",
    "decode": "batch {0:,.0f}, {1:,.0f} KV tokens each",
    "transfer": "{0:,.0f} tokens",
}
_LEAST_SPAN = 1.001  # the greatest value of an axis over the least
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15rem .9rem .15rem 0;
  vertical-align: top; } th { font-weight: 600; white-space: nowrap; }
figure { margin: .5rem .5rem .5rem 0; padding: .5rem; display: inline-block; background: #fff;
  border-radius: 8px; max-width: 100%; } svg { max-width: 100%; height: auto; display: block; }
.flag { background: #fff3cd; color: #1b1b1b; padding: .5rem .8rem; border-left: 4px solid #d39e00; }
@media (prefers-color-scheme: dark) { body { color: #e8ebee; background: #14171a; } }
@media (max-width: 600px) { body { margin: 1rem auto; } th, td { display: block; }
  td { padding-bottom: .6rem; overflow-wrap: anywhere; } }
"""


def write_page(profile: Profile, path: Path, notes: Sequence[str] = ()) -> Path:
    """Write the page; `notes` are said at its top. Raises `ConfigError` without matplotlib."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
    except ImportError as error:
        raise ConfigError(NOT_INSTALLED) from error
    parts = [
        f"<h1>Profile {html.escape(profile.name)}</h1>",
        *(f'<p class="flag">{html.escape(note)}</p>' for note in (*_flags(profile), *notes)),
        _table(_head(profile)),
        "<h2>Times</h2>",
        *_figures(profile, _TIMES),
        *(["<h2>Power</h2>", *_figures(profile, _WATTS)] if profile.has_watts else []),
        "<h2>Each point told from the others</h2>",
        _table(_left_out(profile)),
    ]
    title = html.escape(f"Profile {profile.name}")
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title>"
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n",
        encoding="utf-8",
    )
    return path


def _flags(profile: Profile) -> Iterable[str]:
    if profile.provenance.kind != "measured":
        yield f"The times are {profile.provenance.kind}, not measured."
    power = profile.power_provenance
    if power is not None and power.kind != "measured":
        yield f"All watts are modelled, not measured: {power.source.removeprefix('modelled: ')}"


def _head(profile: Profile) -> Iterable[tuple[str, str]]:
    yield "GPU", profile.gpu + (f", tensor parallel {profile.tp}" if profile.tp > 1 else "")
    yield "model", f"{profile.model}, {profile.dtype}"
    graphs = {"none": "no CUDA graphs", "eager": "eager", "cuda-graph": "CUDA graphs"}
    yield "engine", f"{profile.engine} {profile.engine_version}, {graphs[profile.graph_mode]}"
    if profile.power_cap_w is not None:
        yield "power cap", f"{profile.power_cap_w:g} W"
    if profile.idle_w is not None:
        word = "" if _is_metered(profile) else " (modelled)"
        yield "idle, loaded", f"{profile.idle_w:.1f} W{word}"
    yield "KV capacity", f"{profile.kv_capacity_tokens or 0:,} tokens"
    yield "prefill chunk", f"{profile.chunk_tokens or 0:,} tokens"
    if profile.first_handoff_s is not None:
        yield "first handoff of a pair", f"{1e3 * profile.first_handoff_s:.1f} ms beyond later ones"
    yield from _origin("times", profile.provenance)
    if profile.power_provenance is not None:
        yield from _origin("watts", profile.power_provenance)
    for name, value in profile.provenance.machine.items():
        yield name.replace("_", " "), value


def _origin(what: str, origin: Provenance) -> Iterable[tuple[str, str]]:
    when = f" {origin.date}" if origin.date else ""
    yield what, f"{origin.kind}{when}: {origin.source}"
    if origin.error is not None:
        yield f"{what}, error", origin.error


def _left_out(profile: Profile) -> Iterable[tuple[str, str]]:
    found = profile.leave_one_out()
    for name in ("prefill", "prefill_watts", "decode", "decode_watts", "transfer"):
        error: LeftOut | None = getattr(found, name)
        if error is not None:
            yield name.replace("_", " "), _words(error, _PLACES[name.removesuffix("_watts")])


def _words(error: LeftOut, place: str) -> str:
    if error.median_error is None:
        points = "1 point, not" if error.num_points == 1 else f"{error.num_points} points, none"
        return f"{points} between others"
    return (
        f"median {100 * error.median_error:.1f} %, worst {100 * (error.worst_error or 0):.0f} %"
        f" at {place.format(*(error.worst_at or ()))};"
        f" {error.num_edge} of {error.num_points} lie at the edge"
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{''.join(lines)}</table>"


Draw = Callable[[Profile, Any], bool]


def _figures(profile: Profile, draws: Sequence[tuple[str, str, str, Draw]]) -> Iterable[str]:
    from matplotlib.figure import Figure

    for title, across, up, draw in draws:
        figure = Figure(figsize=(5.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        if not draw(profile, axes):
            continue
        axes.set_xscale("log", base=2)
        _widen(axes)
        _number(axes)
        modelled = ", modelled" if up == "W" and not _is_metered(profile) else ""
        axes.set(title=f"{title}{modelled}", xlabel=across, ylabel=up)
        axes.grid(visible=True, which="major", alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(fontsize=8, loc="outside lower center", ncols=4, frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        drawn = out.getvalue()
        yield f"<figure>{drawn[drawn.index('<svg') :]}</figure>"


def _widen(axes: Any) -> None:
    """A lone point, its interval narrow, spans nothing that a logarithmic axis could show."""
    low, high = axes.dataLim.intervaly
    if 0 < low <= high < _LEAST_SPAN * low:
        axes.set_ylim(low / 2, low * 2)
    low, high = axes.dataLim.intervalx
    if 0 < low <= high < _LEAST_SPAN * low:
        axes.set_xlim(low / 2, low * 2)


def _number(axes: Any) -> None:
    """Plain numbers beside ticks, enough of them on either axis to read values between."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:,.10g}")
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(plain)
    axes.tick_params(labelsize=8)
    if axes.get_yscale() != "log":
        return
    low, high = axes.get_ylim()
    subs = (1.0,) if high > 1000 * low else (1.0, 2.0, 5.0) if high > 4 * low else range(1, 10)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=99))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _is_metered(profile: Profile) -> bool:
    return profile.power_provenance is not None and profile.power_provenance.kind == "measured"


def _line(axes: Any, points: Sequence[tuple[float, float, float | None]], label: str) -> bool:
    """Points (across, up, half a confidence interval over the value), joined."""
    if not points:
        return False
    ordered = sorted(points, key=lambda point: point[0])
    xs, ys = [p[0] for p in ordered], [p[1] for p in ordered]
    bars = [p[1] * (p[2] or 0.0) for p in ordered]
    axes.errorbar(xs, ys, yerr=bars, marker="o", markersize=3, capsize=2, linewidth=1, label=label)
    return True


def _new_prompts(profile: Profile) -> list[PrefillPoint]:
    return [p for p in profile.prefill if p.cached_tokens == 0]


def _prefill_times(profile: Profile, axes: Any) -> bool:
    axes.set_yscale("log")
    drawn = False
    for batch in sorted({p.batch for p in _new_prompts(profile)}):
        row = [p for p in _new_prompts(profile) if p.batch == batch]
        values = [(p.new_tokens * batch, p.seconds * 1e3, p.rel_ci) for p in row]
        drawn = _line(axes, values, f"{batch} prompt{'s' if batch > 1 else ''}") or drawn
    return drawn


def _append_times(profile: Profile, axes: Any) -> bool:
    axes.set_yscale("log")
    drawn = False
    for cached, batch in sorted({(p.cached_tokens, p.batch) for p in profile.prefill}):
        if cached == 0:
            continue
        row = [p for p in profile.prefill if (p.cached_tokens, p.batch) == (cached, batch)]
        values = [(p.new_tokens * batch, p.seconds * 1e3, p.rel_ci) for p in row]
        many = f"{batch} x " if batch > 1 else ""
        drawn = _line(axes, values, f"{many}after {cached:,}") or drawn
    return drawn


def _decode_times(profile: Profile, axes: Any) -> bool:
    axes.set_yscale("log")
    drawn = False
    for batch in sorted({p.batch for p in profile.decode}):
        row = [p for p in profile.decode if p.batch == batch]
        values = [(p.kv_tokens, p.step_s * 1e3, p.rel_ci) for p in row]
        drawn = _line(axes, values, f"batch {batch}") or drawn
    return drawn


def _transfer_times(profile: Profile, axes: Any) -> bool:
    axes.set_yscale("log")
    return _line(axes, [(p.tokens, p.seconds * 1e3, None) for p in profile.transfer], "")


def _front_times(profile: Profile, axes: Any) -> bool:
    axes.set_yscale("log")
    drawn = False
    for label, points in (
        ("on one worker", profile.request), ("through a prefiller", profile.handoff),
    ):  # fmt: skip
        values = [(p.tokens, p.seconds * 1e3, p.rel_ci) for p in points]
        drawn = _line(axes, values, label) or drawn
    return drawn


def _prefill_watts(profile: Profile, axes: Any) -> bool:
    drawn = False
    for batch in sorted({p.batch for p in _new_prompts(profile)}):
        row = [p for p in _new_prompts(profile) if p.batch == batch]
        values = [(p.new_tokens * batch, p.watts, None) for p in row if p.watts is not None]
        drawn = _line(axes, values, f"{batch} prompt{'s' if batch > 1 else ''}") or drawn
    return drawn and _floor(profile, axes)


def _decode_watts(profile: Profile, axes: Any) -> bool:
    drawn = False
    for batch in sorted({p.batch for p in profile.decode}):
        row = [p for p in profile.decode if p.batch == batch]
        values = [(float(p.kv_tokens), p.watts, None) for p in row if p.watts is not None]
        drawn = _line(axes, values, f"batch {batch}") or drawn
    return drawn and _floor(profile, axes)


def _floor(profile: Profile, axes: Any) -> bool:
    if profile.idle_w is not None:
        axes.axhline(profile.idle_w, linestyle=":", linewidth=1, color="grey", label="idle, loaded")
    axes.set_ylim(bottom=0)
    return True


_TIMES: Sequence[tuple[str, str, str, Draw]] = (
    ("Prefill, nothing cached", "new tokens of the batch", "ms", _prefill_times),
    ("Append prefill, by what is cached before", "new tokens of the batch", "ms", _append_times),
    ("Decode step", "KV tokens of the batch", "ms", _decode_times),
    ("KV transfer", "tokens", "ms", _transfer_times),
    ("First token beyond its prefill", "tokens of the prompt", "ms", _front_times),
)
_WATTS: Sequence[tuple[str, str, str, Draw]] = (
    ("Prefill", "new tokens of the batch", "W", _prefill_watts),
    ("Decode", "KV tokens of the batch", "W", _decode_watts),
)
