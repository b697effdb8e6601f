"""What is said of taken ports, and of which host is this machine."""

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from conserve_sglang.launcher.here import host_test, is_this_machine
from conserve_sglang.launcher.ports import is_free, listener, wait_free


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_with_a_listener_is_not_free_on_any_address(taken: int) -> None:
    assert not is_free("127.0.0.1", taken)
    assert not is_free("0.0.0.0", taken)


def test_the_process_that_listens_is_named(taken: int) -> None:
    found = listener(taken)
    assert found is not None
    assert found.startswith(f"process {os.getpid()} (")


def test_a_port_without_a_listener_has_no_process() -> None:
    assert listener(1) is None


def test_a_closed_connection_does_not_keep_its_port() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as all servers do
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = server.accept()
        served.close()
        client.close()
    assert is_free("127.0.0.1", port)


async def test_waiting_ends_when_the_port_is_free_and_names_it_when_not() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert await wait_free([("127.0.0.1", port)], timeout_s=0.1) == (port,)
        waiting = asyncio.create_task(wait_free([("127.0.0.1", port)], timeout_s=10))
    assert await waiting == ()


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("127.0.0.5", True),
        (socket.gethostname(), True),
        ("192.0.2.7", False),
        ("2001:db8::7", False),
        ("no-such-host.invalid", False),
    ],
)
def test_this_machine_is_known_by_its_names_and_addresses(host: str, is_here: bool) -> None:
    assert is_this_machine(host) is is_here


def test_the_name_the_user_gives_replaces_what_would_be_found_out() -> None:
    test = host_test("a40-box")
    assert test("a40-box")
    assert not test("127.0.0.1")
