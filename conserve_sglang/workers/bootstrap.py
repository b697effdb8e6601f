"""The fields that pair a prefiller and a decoder for one KV transfer."""

import json
import os
from collections.abc import Iterator

_ROOM_SPACE = 1 << 63


def rooms(seed: bytes | None = None) -> Iterator[int]:
    """63-bit room numbers, none of them twice in 2**63.

    SGLang crashes on a room in use, so uniqueness is by construction: adding an odd step modulo
    a power of two meets every number once. Start and step are random, so that two routers in
    front of one prefiller do not meet either.
    """
    entropy = seed or os.urandom(16)
    room = int.from_bytes(entropy[:8], "big") % _ROOM_SPACE
    step = int.from_bytes(entropy[8:16], "big") % _ROOM_SPACE | 1
    while True:
        if room:  # 0 is what SGLang's own health checks use
            yield room
        room = (room + step) % _ROOM_SPACE


def prefiller_fields(host: str, bootstrap_port: int) -> bytes:
    """What stands before the room number: the prefiller's address, as JSON object members."""
    return (
        f'"bootstrap_host":{json.dumps(host)},"bootstrap_port":{bootstrap_port},"bootstrap_room":'
    ).encode()
