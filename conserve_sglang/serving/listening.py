"""Sockets to listen on."""

import socket

from conserve_sglang.core.errors import ConfigError


def bound(host: str, port: int, field: str, *, is_shared: bool = False) -> socket.socket:
    """A socket bound to a port; other processes of ours may bind the same if it `is_shared`.

    Raises ConfigError, naming the tier map's field, if somebody else listens there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"{field}: cannot listen on {host}:{port} ({error.strerror})."
            " Stop what listens there, or set another port in the tier map."
        ) from error
    sock.setblocking(False)
    return sock


def reserved(host: str, port: int, field: str) -> socket.socket:
    """A port that is ours, to be shared by our processes: bound, and nobody listens on it here.

    It is bound alone first, since a router that shares its port would let another one join.
    """
    alone = bound(host, port, field)
    port = alone.getsockname()[1]
    alone.close()
    return bound(host, port, field, is_shared=True)
