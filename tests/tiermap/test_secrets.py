"""Keys and passwords in environment variables: read, or an error that says what to do and not the
key; and URLs with one are shown without it."""

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import RouterSettings, StateSettings
from conserve_sglang.tiermap.secrets import (
    MASK,
    admin_key,
    redis_password,
    without_password,
    worker_api_key,
)

SETTINGS = RouterSettings(worker_api_key_env="W", admin_key_env="A")


def test_keys_are_read_from_the_variables_named() -> None:
    environ = {"W": "key/of+workers=", "A": "admin-key"}
    assert worker_api_key(SETTINGS, environ) == "key/of+workers="
    assert admin_key(SETTINGS, environ) == "admin-key"
    assert worker_api_key(RouterSettings(), environ) is admin_key(RouterSettings(), environ) is None


@pytest.mark.parametrize("environ", [{}, {"A": ""}])
def test_missing_key_is_an_error(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"router\.admin_key_env: .* A is not set"):
        admin_key(SETTINGS, environ)


@pytest.mark.parametrize("key", ["two words", "line\r\nx: y", "schlüssel", "-dash", "tab\t"])
def test_key_that_fits_no_header_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match="Use another key") as caught:
        worker_api_key(SETTINGS, {"W": key})
    assert key not in str(caught.value)


def test_a_password_may_have_any_characters() -> None:
    settings = RouterSettings(state=StateSettings(redis="redis://h", redis_password_env="R"))
    assert redis_password(settings, {"R": "-two wörds/@:"}) == "-two wörds/@:"
    with pytest.raises(ConfigError, match=r"redis_password_env: .* R is not set"):
        redis_password(settings, {})
    assert redis_password(RouterSettings(state=None), {}) is None
    assert redis_password(RouterSettings(), {}) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://user@h/0", "redis://user@h/0"),
        ("rediss://user:hush@h:1/0?timeout=2", "rediss://user:***@h:1/0?timeout=2"),
        ("redis://:hu@sh@h", "redis://:***@h"),
        ("unix:///run/r.sock?db=1&password=hush", "unix:///run/r.sock?db=1&password=***"),
        ("redis://:hush@[h", "***"),
        (" redis://u:p@h", MASK),
        ("redis://h/0?passw%6frd=p", MASK),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
