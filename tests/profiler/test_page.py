"""The page of plots stands by itself and says what is modelled."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from conserve_sglang.profiler.page import write_page
from conserve_sglang.profiles import (
    DecodePoint,
    PrefillPoint,
    Profile,
    Provenance,
    TransferPoint,
    shipped_profile,
)

MEASURED = Provenance(kind="measured", source="here", date="2026-11-21", machine={"cpu": "a <b>"})
PROFILE = Profile(
    name="tiny",
    gpu="A40",
    model="m",
    dtype="bfloat16",
    engine="sglang",
    engine_version="0.5.23",
    graph_mode="eager",
    provenance=MEASURED,
    power_provenance=MEASURED,
    idle_w=70.0,
    prefill=(
        PrefillPoint(new_tokens=64, seconds=0.01, watts=150.0, rel_ci=0.02),
        PrefillPoint(new_tokens=1024, seconds=0.05, watts=250.0),
        PrefillPoint(new_tokens=64, cached_tokens=1024, seconds=0.02, watts=200.0),
    ),
    decode=(
        DecodePoint(batch=1, kv_tokens=64, step_s=0.01, watts=120.0),
        DecodePoint(batch=8, kv_tokens=4096, step_s=0.02, watts=170.0),
    ),
    transfer=(TransferPoint(tokens=64, seconds=0.003),),
)


def page(profile: Profile, folder: Path) -> str:
    return write_page(profile, folder / "p.html").read_text()


def test_all_of_it_is_drawn_and_nothing_is_fetched(tmp_path: Path) -> None:
    text = page(PROFILE, tmp_path)
    assert text.count("<svg") == 6
    assert "a &lt;b&gt;" in text
    links = re.findall(r"(?:src|href)=\"([^\"]*)\"", text)
    assert all(link.startswith("#") for link in links)
    assert "modelled" not in text


def test_a_first_handoff_is_told_where_it_is_known(tmp_path: Path) -> None:
    assert "first handoff" not in page(PROFILE, tmp_path)
    text = page(replace(PROFILE, first_handoff_s=0.0575), tmp_path)
    assert "<th>first handoff of a pair</th><td>57.5 ms beyond later ones</td>" in text


def test_a_lone_point_can_be_drawn_whatever_its_last_digits(tmp_path: Path) -> None:
    lone = DecodePoint(batch=1, kv_tokens=113, step_s=0.005910195937303797)
    assert "Decode step" in page(replace(PROFILE, power_provenance=None, decode=(lone,)), tmp_path)


def test_modelled_watts_say_so(tmp_path: Path) -> None:
    power = Provenance(kind="estimated", source="a guess")
    text = page(replace(PROFILE, power_provenance=power), tmp_path)
    assert "All watts are modelled, not measured: a guess" in text
    assert "70.0 W (modelled)" in text


def test_without_watts_there_are_no_plots_of_them(tmp_path: Path) -> None:
    bare = replace(
        PROFILE,
        power_provenance=None,
        prefill=tuple(replace(p, watts=None) for p in PROFILE.prefill),
        decode=tuple(replace(p, watts=None) for p in PROFILE.decode),
    )
    assert page(bare, tmp_path).count("<svg") == 4


def test_the_worst_point_is_told_in_words(tmp_path: Path) -> None:
    text = page(shipped_profile("l4-qwen3-8b"), tmp_path)
    assert re.search(r"worst \d+ % at batch \d+, [\d,]+ cached and [\d,]+ new tokens each;", text)
    assert re.search(r"worst \d+ % at batch \d+, [\d,]+ KV tokens each;", text)
    assert re.search(r"worst \d+ % at [\d,]+ tokens;", text)
    assert "1 point, not between others" in page(PROFILE, tmp_path)


def test_it_fits_a_narrow_screen_and_a_dark_one(tmp_path: Path) -> None:
    text = page(PROFILE, tmp_path)
    assert '<meta name="viewport" content="width=device-width,initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text


class Drawn:
    """What the plots of a page are given to draw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.figures: list[Any] = []
        keep = Figure.savefig

        def savefig(figure: Figure, *args: Any, **kwargs: Any) -> None:
            keep(figure, *args, **kwargs)
            self.figures.append(figure)

        monkeypatch.setattr(Figure, "savefig", savefig)


def test_ticks_are_plain_numbers_and_legends_lie_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn(monkeypatch)
    page(PROFILE, tmp_path)
    for figure in drawn.figures:
        (axes,) = figure.axes
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            places = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            words = [label.get_text() for at, label in places if low <= at <= high]
            assert len(words) >= 2
            assert all(re.fullmatch(r"[\d,.]+", one) for one in words)
            assert len(set(words)) == len(words)
        for legend in figure.legends:
            assert legend.get_window_extent().y1 <= axes.get_window_extent().y0


def test_appends_of_different_batches_are_lines_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn(monkeypatch)
    more = (
        PrefillPoint(new_tokens=128, cached_tokens=1024, seconds=0.03),
        PrefillPoint(new_tokens=64, cached_tokens=1024, seconds=0.06, batch=4),
    )
    page(replace(PROFILE, prefill=(*PROFILE.prefill, *more)), tmp_path)
    (axes,) = drawn.figures[1].axes
    lines = {
        label: [float(x) for x in bars.lines[0].get_xdata()]
        for bars, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    assert lines == {"after 1,024": [64, 128], "4 x after 1,024": [256]}


def test_a_shipped_profile_can_be_drawn_too(tmp_path: Path) -> None:
    text = page(shipped_profile("h100-qwen3-0.6b"), tmp_path)
    assert "The times are estimated, not measured." in text
