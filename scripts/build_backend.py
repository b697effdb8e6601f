"""The project's build backend: setuptools, and mypyc beside it where it is asked for.

`CONSERVE_SGLANG_COMPILE=1 pip install .` compiles the modules named here to machine code; they are
the same sources, and a C compiler and Python's headers are needed. Without the variable nothing is
compiled and nothing of this is needed. What mypyc cannot hold stays interpreted: classes that
msgspec makes objects of, and what is not run for every turn.
"""

import os
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

ASKED_BY = "CONSERVE_SGLANG_COMPILE"
REQUIRED = ["mypy==2.4.1", "msgspec>=0.19"]
GROUP = "conserve_sglang"
HOT = {
    "dispatch": (
        "avoiding", "blame", "bookings", "busy", "commands", "conversations", "dispatcher",
        "events", "fair_order", "first_to_go", "histories", "kv_ledger", "lacking", "late",
        "placer", "placing", "restoring", "retrying", "service_rate", "speeds", "state", "waiting",
    ),
    "policy": ("api", "parts"),
    "router": (
        "admission", "brain", "caller", "client", "conversations", "estimate", "executor", "front",
        "headers", "identity", "journal", "keyring", "legs", "listeners", "measured", "meter",
        "patience", "payload", "place", "place_answer", "placed", "prefill_leg", "request_ids",
        "request_reader", "turn", "wire", "worker",
    ),
    "telemetry": ("metrics",),
    "workers": ("known_head", "outbox", "pool", "sse", "upstream"),
}  # fmt: skip
_CHECKS = ("--explicit-package-bases", "--ignore-missing-imports", "--follow-imports=silent")


def is_asked() -> bool:
    """Whether this build is to compile. Raises SystemExit for a value that says neither."""
    value = os.environ.get(ASKED_BY, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"error: {ASKED_BY} is {value!r}. Set it to 1 to compile, or to 0.")
    return value == "1"


def hot_paths() -> list[str]:
    """The files that are compiled, from the project's root."""
    return [f"conserve_sglang/{part}/{name}.py" for part, names in HOT.items() for name in names]


def extensions() -> list[Any]:
    """What `setup.py` gives to setuptools: nothing, unless it is asked for."""
    if not is_asked():
        return []
    try:
        from mypyc.build import mypycify
    except ImportError as error:
        raise SystemExit(
            f"error: {ASKED_BY} needs {' and '.join(REQUIRED)} to build with: pip install them,"
            " or leave --no-build-isolation out"
        ) from error
    built: list[Any] = mypycify([*_CHECKS, *hot_paths()], group_name=GROUP, debug_level="0")
    return built


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """See PEP 517."""
    return REQUIRED if is_asked() else build_meta.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """See PEP 660. Compiled modules beside the sources would hide every later change of these."""
    if is_asked():
        raise SystemExit(f"error: an editable install is not compiled: unset {ASKED_BY}")
    return build_meta.get_requires_for_build_editable(config_settings)


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    """See PEP 660."""
    get_requires_for_build_editable(config_settings)
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
