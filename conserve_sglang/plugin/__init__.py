"""The SGLang plugin: conversation-level disaggregation inside a stock decode server.

`activate` is the entry point of the group `sglang.srt.plugins`. SGLang calls it first thing in
every process it starts, and applies the registered hooks right after.
"""

import multiprocessing
import sys

from conserve_sglang.core.errors import PluginError
from conserve_sglang.plugin.mask import mask_logs
from conserve_sglang.plugin.settings import Settings, read_settings


def activate() -> None:
    """Do what the environment asks for in this process; nothing without CONSERVE_ENABLED=1."""
    settings = read_settings()
    if not settings.enabled:
        return
    if settings.cpu_engine:
        from conserve_sglang.plugin.cpu import apply_cpu_cures

        apply_cpu_cures()
    try:
        _hook_into_this_process(settings)
    except PluginError as error:
        # SGLang swallows exceptions of plugins and would serve without them; this it cannot.
        raise SystemExit(f"conserve-sglang: the plugin refuses to serve: {error}") from error


def _hook_into_this_process(settings: Settings) -> None:
    is_front = multiprocessing.parent_process() is None
    if is_front:
        mask_logs()
    is_scheduler = not is_front and "sglang.srt.managers.scheduler" in sys.modules
    if is_front and settings.continues:
        from conserve_sglang.plugin.install import install_front

        install_front(settings)
    elif is_scheduler and (settings.continues or settings.transfer_log or settings.phase_log):
        from conserve_sglang.plugin.install import install_scheduler

        install_scheduler(settings)
