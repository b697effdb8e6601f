"""Keys and passwords that a tier map names by environment variable, so that no file of a deployment
holds one."""

import os
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import RouterSettings

MASK = "***"
# Not TOKENS: those are counted. A flag must end so: --speculative-token-map is no secret.
_SECRET_WORDS = "(KEYS?|TOKEN|SECRETS?|PASSWORD|PASSWD|CREDENTIALS?)"
_SECRET_VARIABLE = re.compile(rf"{_SECRET_WORDS}(_|$)", re.IGNORECASE)
_SECRET_FLAG = re.compile(rf".*{_SECRET_WORDS}", re.IGNORECASE)
_PASSWORD = re.compile(r"(?P<before>^\w+://[^:/?#]*:)[^/?#]*(?=@)|(?<=[?&]password=)[^&#]*")
_KEY = re.compile(r"[!-,./-~][!-~]*")
"""What fits into a header and a command line: printable, no space, no dash at its beginning."""


def worker_api_key(settings: RouterSettings, environ: Mapping[str, str] = os.environ) -> str | None:
    """The API key the workers ask for; None if they ask for none."""
    return _key(settings.worker_api_key_env, "router.worker_api_key_env", environ)


def admin_key(settings: RouterSettings, environ: Mapping[str, str] = os.environ) -> str | None:
    """The key the control port asks for; None if it asks for none."""
    return _key(settings.admin_key_env, "router.admin_key_env", environ)


def redis_password(settings: RouterSettings, environ: Mapping[str, str] = os.environ) -> str | None:
    """The password that replicas show to Redis; None: the tier map names none."""
    if settings.state is None:
        return None
    variable = settings.state.redis_password_env
    return _value(variable, "router.state.redis_password_env", "the password", environ)


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable of this name holds what is not to be shown."""
    return _SECRET_VARIABLE.search(name) is not None


def is_secret_flag(name: str) -> bool:
    """Whether the value of an SGLang flag of this name is not to be shown."""
    return _SECRET_FLAG.fullmatch(name) is not None


def password_in(url: str) -> str | None:
    """The password that a URL holds, or None. Raises ValueError for what is no URL."""
    parts = urlsplit(url)
    asked = dict(parse_qsl(parts.query))
    return parts.password or asked.get("password")


def without_password(url: str) -> str:
    """A URL to be shown: a password in it is masked."""
    shown = _PASSWORD.sub(rf"\g<before>{MASK}", url)
    try:
        left = password_in(shown)
    except ValueError:
        return MASK
    return shown if left in (None, MASK) else MASK


def _value(variable: str | None, field: str, what: str, environ: Mapping[str, str]) -> str | None:
    if variable is None:
        return None
    value = environ.get(variable, "")
    if not value:
        raise ConfigError(
            f"{field}: the environment variable {variable} is not set. Set it to {what}, or"
            " remove the field from the tier map."
        )
    return value


def _key(variable: str | None, field: str, environ: Mapping[str, str]) -> str | None:
    value = _value(variable, field, "the key", environ)
    if value is None:
        return None
    if not _KEY.fullmatch(value):
        raise ConfigError(
            f"{field}: the key in the environment variable {variable} has a space, a character"
            " beyond ASCII, or a dash at its beginning. Use another key."
        )
    return value
