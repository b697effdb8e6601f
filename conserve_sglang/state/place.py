"""Where a router's state file is, and opening it."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.state.sqlite import SqliteStore

if TYPE_CHECKING:
    from conserve_sglang.state.shared import SharedStore

logger = logging.getLogger(__name__)


def default_path(tier_map: TierMap) -> Path:
    """A file of this tier map's own in the user's state folder: two maps, or ports, two files."""
    folder = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    name = f"{Path(tier_map.source).stem}-{tier_map.router.port}.sqlite"
    return Path(folder).expanduser() / "conserve-sglang" / name


def open_store(
    tier_map: TierMap, redis_password: str | None = None
) -> "SqliteStore | SharedStore | None":
    """The store a tier map asks for, None for none. Raises ConfigError for a file not fit.

    Where no file is named and the default one's folder cannot be written, there is none.
    """
    settings = tier_map.router.state
    if settings is None:
        return None
    if settings.redis is not None:
        try:
            from conserve_sglang.state.shared import SharedStore  # an extra
        except ImportError as error:
            raise ConfigError(
                "router.state.redis needs a package: pip install 'conserve-sglang[redis]'"
            ) from error
        ttl_s = tier_map.router.conversation_ttl_s
        return SharedStore(settings.redis, settings.namespace, ttl_s, redis_password)
    if settings.path is not None:
        return SqliteStore(Path(settings.path))
    path = default_path(tier_map)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_writable = os.access(path.parent, os.W_OK)
    except (OSError, RuntimeError):
        is_writable = False
    if is_writable:
        return SqliteStore(path)
    logger.warning(
        "%s cannot be written: conversations are forgotten when the router ends. Name a file in"
        " router.state.path, or write `state: null` if that is meant.",
        path.parent,
    )
    return None
