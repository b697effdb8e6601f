"""What one request is called in answers, logs and traces: by its client, or by the router.

A client names it by the header `x-request-id`; a name that is too long, or has characters that
logs and headers are not safe from, counts as none. The router's own names are random, so that they
say nothing of other requests; they are drawn many at a time, since each turn needs one.
"""

import os
import re

REQUEST_ID_HEADER = b"x-request-id"
MAX_ID_BYTES = 128
_FIT = re.compile(rb"[A-Za-z0-9._~:/+=-]{1,%d}" % MAX_ID_BYTES)
_DRAWN_AT_ONCE = 256
_RANDOM_BYTES = 12
_BEGINS = len(REQUEST_ID_HEADER) + 2
_drawn: list[bytes] = []


def request_line(given: bytes | None) -> bytes:
    """The header line with a request's id: what its client sent, if that is fit, or a new one."""
    if given is not None and _FIT.fullmatch(given) is not None:
        return b"x-request-id: " + given + b"\r\n"
    if not _drawn:
        _draw()
    return _drawn.pop()


def id_in(line: bytes) -> str:
    """The id in such a line."""
    return line[_BEGINS:-2].decode()


def _draw() -> None:
    digits = os.urandom(_RANDOM_BYTES * _DRAWN_AT_ONCE).hex().encode()
    size = 2 * _RANDOM_BYTES
    for at in range(0, len(digits), size):
        _drawn.append(b"x-request-id: req_" + digits[at : at + size] + b"\r\n")
