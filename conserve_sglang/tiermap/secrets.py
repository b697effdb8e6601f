"""Keys that a tier map names by environment variable, so that no file of a deployment holds one."""

import os
import re
from collections.abc import Mapping

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import RouterSettings

_KEY = re.compile(r"[!-,./-~][!-~]*")
"""What fits into a header and a command line: printable, no space, no dash at its beginning."""


def worker_api_key(settings: RouterSettings, environ: Mapping[str, str] = os.environ) -> str | None:
    """The API key the workers ask for; None if they ask for none."""
    return _key(settings.worker_api_key_env, "router.worker_api_key_env", environ)


def admin_key(settings: RouterSettings, environ: Mapping[str, str] = os.environ) -> str | None:
    """The key the control port asks for; None if it asks for none."""
    return _key(settings.admin_key_env, "router.admin_key_env", environ)


def _key(variable: str | None, field: str, environ: Mapping[str, str]) -> str | None:
    if variable is None:
        return None
    value = environ.get(variable, "")
    if not value:
        raise ConfigError(
            f"{field}: the environment variable {variable} is not set. Set it to the key, or"
            " remove the field from the tier map."
        )
    if not _KEY.fullmatch(value):
        raise ConfigError(
            f"{field}: the key in the environment variable {variable} has a space, a character"
            " beyond ASCII, or a dash at its beginning. Use another key."
        )
    return value
