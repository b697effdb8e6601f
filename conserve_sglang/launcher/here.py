"""Which hosts of a tier map are this machine."""

import ipaddress
import socket
from collections.abc import Callable

_LOOPBACK_NAMES = frozenset({"localhost", "0.0.0.0", "::"})


def host_test(host: str | None) -> Callable[[str], bool]:
    """A test of "is this machine": the name given by the user alone, or what we find out."""
    if host is not None:
        return lambda name: name == host
    return is_this_machine


def is_this_machine(host: str) -> bool:
    """Whether `host` is the loopback, this machine's name, or one of its addresses."""
    if host in _LOOPBACK_NAMES or host in own_names():
        return True
    try:
        return _is_own_address(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    return any(_is_own_address(ipaddress.ip_address(str(row[4][0]).split("%")[0])) for row in found)


def own_names() -> frozenset[str]:
    """This machine's name, with and without its domain."""
    name = socket.gethostname()
    return frozenset({name, name.split(".")[0]})


def _is_own_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """An address can be bound only on the machine that has it."""
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
