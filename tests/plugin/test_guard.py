import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang import plugin
from conserve_sglang.core.errors import HookMissing, PluginError, UnsupportedSglang
from conserve_sglang.plugin import guard
from conserve_sglang.plugin.adapter import adapter_for
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.settings import read_settings
from tests.plugin.stub import StubAdapter

VICTIM = f"{__name__}.victim"


def victim() -> int:
    return 1


def wrapped(function: Callable[[], Any], hook: Callable[..., Any]) -> Callable[[], Any]:
    """As SGLang's registry wraps."""

    @functools.wraps(function)
    def wrapper() -> Any:
        return hook(function)

    return wrapper


def test_a_hook_is_found_under_another_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (lambda f: f(), lambda f: f())
    found: list[bool] = []
    for function in (victim, wrapped(wrapped(victim, ours), theirs)):
        monkeypatch.setattr("pkgutil.resolve_name", lambda _, live=function: live)
        found.append(guard.is_in_force(VICTIM, ours))
    assert found == [False, True]


def test_an_unknown_version_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedSglang, match=r"0\.4\.1 has no manifest.*0\.5\.23"):
        guard.check_sglang("0.4.1", Path("/nowhere"))


def test_a_source_that_differs_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSglang, match=r"gone: Scheduler\.abort_request"):
        guard.check_sglang("0.5.23", tmp_path)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(PluginError, match=r"(?s)first.*second"):
        guard.raise_problems(["first", "second"])


class ServerArgs:
    disaggregation_mode = "decode"
    disaggregation_decode_enable_radix_cache = True
    chunked_prefill_size = 4096
    page_size = 1
    pp_size = 2

    def method(self) -> None: ...


def test_flags_are_refused_before_the_model_is_loaded() -> None:
    settings = read_settings({"CONSERVE_LOCAL_PREFILL": "1"})
    context = Inside(sglang_version="0", adapter=StubAdapter(), settings=settings)
    with pytest.raises(PluginError, match=r"(?s)--pp-size.*--chunked-prefill-size 4096"):
        guard.before_init((), context, True, object(), ServerArgs(), object())


def test_an_older_decoder_without_the_unified_tree_is_refused_by_its_switch() -> None:
    adapter = adapter_for("0.5.17")
    name = "SGLANG_ENABLE_UNIFIED_RADIX_TREE"
    told = {"CONSERVE_LOCAL_PREFILL": "1"}
    context = Inside(sglang_version="0.5.17", adapter=adapter, settings=read_settings(told))
    with pytest.raises(PluginError, match=f"set {name}=1"):
        guard.before_init((), context, True, object(), ServerArgs(), object())
    assert adapter.setting_problems(read_settings({**told, name: "1"})) == []
    assert adapter_for("0.5.23").setting_problems(read_settings(told)) == []


def test_a_hook_that_sglang_dropped_is_named() -> None:
    context = Inside(sglang_version="0", adapter=StubAdapter(), settings=read_settings({}))
    targets = (("json.dumps", lambda f: f()),)
    with pytest.raises(HookMissing, match=r"json\.dumps"):
        guard.before_init(targets, context, True, object(), ServerArgs(), object())


def test_the_plugin_is_dormant_unless_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSERVE_ENABLED", raising=False)
    monkeypatch.setenv("CONSERVE_LOCAL_PREFILL", "1")
    monkeypatch.setattr(plugin, "_hook_into_this_process", lambda settings: pytest.fail("hooked"))
    plugin.activate()


def test_a_refusal_ends_the_process_since_sglang_swallows_exceptions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(settings: object) -> None:
        raise PluginError("because")

    monkeypatch.setenv("CONSERVE_ENABLED", "1")
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.setattr(plugin, "_hook_into_this_process", refuses)
    with pytest.raises(SystemExit, match="because"):
        plugin.activate()


def test_a_transfer_log_counts_only_when_switched_on() -> None:
    log = {"CONSERVE_TRANSFER_LOG": "x"}
    assert read_settings(log).transfer_log is None
    assert read_settings({**log, "CONSERVE_COUNT_TRANSFERS": "1"}).transfer_log == "x"
