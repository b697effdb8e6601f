"""What errors say when others quote them."""

import pytest

from conserve_sglang.core.errors import ConfigError, clause


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("It is not there."), "It is not there"),
        (OSError(111, "Connection refused"), "[Errno 111] Connection refused"),
        (ConfigError("wait ...\n"), "wait .."),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_quoted_in_a_sentence_an_error_ends_it_not(error: Exception, said: str) -> None:
    assert clause(error) == said
