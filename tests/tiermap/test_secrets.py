"""Keys in environment variables: read, or an error that says what to do and not the key."""

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import RouterSettings
from conserve_sglang.tiermap.secrets import admin_key, worker_api_key

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
