"""Which TCP ports of this machine are taken, and by whom."""

import asyncio
import socket
from collections.abc import Iterable
from pathlib import Path

_LISTEN = "0A"


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Closed connections in TIME_WAIT do not count."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True


async def wait_free(listens: Iterable[tuple[str, int]], *, timeout_s: float) -> tuple[int, ...]:
    """Wait until all are free; return the ports that are not by then."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    wanted = tuple(listens)
    while taken := tuple(port for host, port in wanted if not is_free(host, port)):
        if loop.time() >= deadline:
            return taken
        await asyncio.sleep(0.05)
    return ()


def listener(port: int) -> str | None:
    """The process that listens on a port, as "PID (command)"; None when it cannot be seen."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening_inodes(table, port)}
    if not inodes:
        return None
    links = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in links for fd in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                return f"process {process.name} ({command[:120]})"
        except OSError:
            continue
    return None


def _listening_inodes(table: str, port: int) -> Iterable[str]:
    """Rows of /proc/net/tcp: index, local address:port in hex, remote, state, ..., inode."""
    try:
        rows = Path("/proc/net", table).read_text().splitlines()[1:]
    except OSError:
        return
    for row in rows:
        columns = row.split()
        if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
            yield columns[9]
