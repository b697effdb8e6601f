"""Refusing to serve: checks at start, because SGLang only logs what goes wrong in a plugin.

`check_sglang` runs before anything is hooked and compares the source with the manifest.
`before_init` runs in each process once SGLang applied the hooks; it looks at the live functions.
`after_init_disaggregation` runs when model and memory are known.
"""

import importlib.util
import pkgutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from conserve_sglang.core.errors import HookMissing, PluginError, UnsupportedSglang
from conserve_sglang.plugin import servable
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.manifest import (
    Status,
    compare,
    known_versions,
    read_manifest,
)

Target = tuple[str, Callable[..., Any]]


def installed_sglang() -> tuple[str, Path]:
    """Version and package folder of the SGLang in this environment, without importing it."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise UnsupportedSglang("SGLang is not installed here.")
    return metadata.version("sglang"), Path(next(iter(spec.submodule_search_locations)))


def check_sglang(version: str, root: Path) -> None:
    """Raise `UnsupportedSglang` unless this very source was studied."""
    manifest = read_manifest(version)
    if manifest is None:
        raise UnsupportedSglang(
            f"SGLang {version} has no manifest; there is one for {', '.join(known_versions())}."
            " Install one of those, or draft one: conserve-sglang doctor --new-manifest."
        )
    differing = [f for f in compare(manifest, root) if f.status is not Status.EQUAL]
    if differing:
        lines = [
            f"  {f.status.value}: {f.function.qualname} ({f.function.file})" for f in differing
        ]
        raise UnsupportedSglang(
            f"the installed SGLang {version} differs from the one this plugin was written for:\n"
            + "\n".join(lines)
            + f"\nReinstall it (pip install --force-reinstall --no-deps sglang=={version})."
        )


def before_init(
    targets: tuple[Target, ...], inside: Inside, is_scheduler: bool, *args: Any, **kwargs: Any
) -> None:
    """Raise unless every hook is in force and the server arguments can be served."""
    missing = [target for target, body in targets if not is_in_force(target, body)]
    if missing:
        raise HookMissing(
            "SGLang did not apply these hooks of the plugin (its log has the reason):\n  "
            + "\n  ".join(missing)
        )
    if is_scheduler and inside.settings.local_prefill:
        server_args = kwargs["server_args"] if "server_args" in kwargs else args[1]
        arguments = _Arguments(server_args)
        is_rust_server = inside.settings.rust_server
        problems = servable.argument_problems(arguments, is_rust_server=is_rust_server)
        problems += inside.adapter.setting_problems(inside.settings)
        chunk = arguments.get("chunked_prefill_size")
        if chunk:  # else SGLang chooses one, and the later check sees it
            problems += servable.chunk_problems(chunk, arguments.get("page_size") or 1, None)
        raise_problems(problems)


def after_init_disaggregation(result: Any, scheduler: Any) -> None:
    """Raise unless model and memory, as SGLang settled them, can be served."""
    raise_problems(
        servable.model_problems(
            is_hybrid_swa=bool(scheduler.is_hybrid_swa),
            is_hybrid_ssm=bool(scheduler.is_hybrid_ssm),
            is_multimodal=bool(scheduler.model_config.is_multimodal),
        )
        + servable.chunk_problems(
            scheduler.chunked_prefill_size,
            int(scheduler.page_size),
            getattr(scheduler, "truncation_align_size", None),
        )
    )


def is_in_force(target: str, body: Callable[..., Any]) -> bool:
    """Whether `body` is among the wrappers of the live function `target`."""
    function = pkgutil.resolve_name(target)
    while function is not None:
        for cell in getattr(function, "__closure__", None) or ():
            if cell.cell_contents is body:
                return True
        function = getattr(function, "__wrapped__", None)
    return False


def raise_problems(problems: list[str]) -> None:
    """Raise one `PluginError` with all of them."""
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise PluginError(f"this server cannot take local turns:\n{listed}")


class _Arguments(dict[str, Any]):
    """The attributes of SGLang's `ServerArgs` as a mapping, those that exist."""

    def __init__(self, server_args: Any) -> None:
        names = (name for name in dir(type(server_args)) if not name.startswith("_"))
        values = {name: getattr(server_args, name, None) for name in names}
        super().__init__({k: v for k, v in values.items() if not callable(v)})
