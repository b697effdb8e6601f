"""The page of plots stands by itself and says what is modelled."""

import re
from dataclasses import replace
from pathlib import Path

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


def test_a_shipped_profile_can_be_drawn_too(tmp_path: Path) -> None:
    text = page(shipped_profile("h100-qwen3-0.6b"), tmp_path)
    assert "The times are estimated, not measured." in text
