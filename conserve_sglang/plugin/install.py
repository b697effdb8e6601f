"""Registering the hooks of one process with SGLang, after checking that it is a known SGLang."""

from conserve_sglang.plugin.adapter import adapter_for
from conserve_sglang.plugin.guard import check_sglang, installed_sglang
from conserve_sglang.plugin.hooks import (
    Hook,
    decoder_hooks,
    front_hooks,
    guards,
    observer_hooks,
    phase_hooks,
    prefiller_hooks,
)
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.settings import Settings


def install_front(settings: Settings) -> None:
    """Hook into the process that speaks HTTP."""
    inside = _inside(settings)
    hooks = front_hooks(inside)
    _register(hooks + guards(hooks, inside, is_scheduler=False))


def install_scheduler(settings: Settings) -> None:
    """Hook into a scheduler process."""
    inside = _inside(settings)
    hooks: tuple[Hook, ...] = ()
    if settings.local_prefill:
        hooks += decoder_hooks(inside)
    elif settings.continues:
        hooks += prefiller_hooks(inside)
    if settings.transfer_log is not None:
        hooks += observer_hooks(inside)
    if settings.phase_log is not None:
        hooks += phase_hooks(inside)
    _register(hooks + guards(hooks, inside, is_scheduler=True))


def _inside(settings: Settings) -> Inside:
    version, root = installed_sglang()
    check_sglang(version, root)
    return Inside(sglang_version=version, adapter=adapter_for(version), settings=settings)


def _register(hooks: tuple[Hook, ...]) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in hooks:
        HookRegistry.register(hook.target, hook.body, HookType[hook.kind.value])
