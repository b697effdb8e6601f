"""Stand-in processes on free ports."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conserve_sglang.launcher.plan import ProcessKind, ProcessSpec

STANDIN = Path(__file__).with_name("standin.py")

Ports = Callable[[int], list[int]]
StandIn = Callable[..., ProcessSpec]


@pytest.fixture
def free_ports() -> Ports:
    """Ports that were free a moment ago, all different."""

    def find(count: int) -> list[int]:
        probes = [socket.socket() for _ in range(count)]
        try:
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            return [probe.getsockname()[1] for probe in probes]
        finally:
            for probe in probes:
                probe.close()

    return find


@pytest.fixture
def stand_in(free_ports: Ports) -> StandIn:
    """The spec of a stand-in process; extra arguments are those of standin.py."""

    def build(
        name: str,
        *args: str,
        kind: ProcessKind = ProcessKind.WORKER,
        port: int | None = None,
        also: tuple[int, ...] = (),
    ) -> ProcessSpec:
        own = port or free_ports(1)[0]
        return ProcessSpec(
            name=name,
            kind=kind,
            argv=(sys.executable, "-S", str(STANDIN), "--port", str(own), *args),
            env={},
            health_host="127.0.0.1",
            health_port=own,
            listens=tuple(("127.0.0.1", number) for number in (own, *also)),
        )

    return build
