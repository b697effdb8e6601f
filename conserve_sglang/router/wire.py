"""The requests a turn sends to its workers, as bytes.

Only members the router owns are put in, directly behind the opening brace; the rest is the
client's own body.
"""

from conserve_sglang.router.payload import Endpoint, Payload
from conserve_sglang.workers.upstream import Pieces

_PATHS = {endpoint: endpoint.value.encode() for endpoint in Endpoint}


def request(head_lines: bytes, headers: bytes, members: bytes, payload: Payload) -> Pieces:
    """One turn's request to one worker; `members` are JSON members that end with a comma.

    `head_lines` are the worker's own, `headers` those of the turn.
    """
    rest = payload.rest
    prefix = b"{" + members + payload.inserts
    head = b"POST %b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n" % (
        _PATHS[payload.endpoint],
        head_lines,
        headers,
        len(prefix) + len(rest),
    )
    if isinstance(rest, bytes):
        return [head + prefix + rest]
    return [head + prefix, rest]


def mark(endpoint: Endpoint, routing_key: str) -> tuple[bytes, bytes]:
    """What a worker is told in `routing_key`, as (header lines, JSON members)."""
    key = routing_key.encode()
    header = b"x-smg-routing-key: " + key + b"\r\n"
    if endpoint is Endpoint.GENERATE:
        return header, b'"routing_key":"' + key + b'",'
    return header, b""
