"""Ports that processes of one router share, and no other router."""

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.serving.listening import bound, reserved


def test_reserved_port_is_shared_by_those_who_are_told_to() -> None:
    with reserved("127.0.0.1", 0, "router.port") as held:
        port = held.getsockname()[1]
        with (
            bound("127.0.0.1", port, "router.port", is_shared=True) as first,
            bound("127.0.0.1", port, "router.port", is_shared=True) as second,
        ):
            first.listen()
            second.listen()
            with pytest.raises(ConfigError, match=f"router.port: cannot listen on .*:{port} "):
                reserved("127.0.0.1", port, "router.port")
