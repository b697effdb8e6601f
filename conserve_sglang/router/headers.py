"""Which headers cross the router, and how heads are written.

Placement belongs to the router alone, so every header by which SGLang or another router can be
steered stops here, whoever sent it.
"""

from functools import lru_cache

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.policy.api import PlacementReason
from conserve_sglang.router.problem import REASONS
from conserve_sglang.router.request_ids import REQUEST_ID_HEADER
from conserve_sglang.workers.upstream import Headers

CONVERSATION_HEADER = b"x-conversation-id"
END_HEADER = b"x-conversation-end"
CLAUDE_SESSION_HEADER = b"x-claude-code-session-id"
CLAUDE_AGENT_HEADER = b"x-claude-code-agent-id"
DEADLINE_HEADER = b"x-conserve-deadline-ms"
TIMEOUT_HEADER = b"x-conserve-timeout-ms"
USAGE_HEADER = b"x-conserve-usage"
NAMING_HEADERS = (
    CONVERSATION_HEADER,
    CLAUDE_SESSION_HEADER,
    b"x-session-affinity",
    b"session-id",
    b"x-smg-routing-key",
)

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Stopped on the way to the workers; accept-encoding because token counts are read in the answer.
STOPPED = _HOP_BY_HOP | frozenset(
    {
        b"accept-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"x-api-key",
        CLAUDE_AGENT_HEADER,
        END_HEADER,
        REQUEST_ID_HEADER,  # turns have theirs put in again
        *NAMING_HEADERS,
    }
)
_OURS = frozenset(
    {
        *NAMING_HEADERS,
        CLAUDE_AGENT_HEADER,
        END_HEADER,
        DEADLINE_HEADER,
        USAGE_HEADER,
        REQUEST_ID_HEADER,
        TIMEOUT_HEADER,
    }
)
_STATUS_LINES = {
    status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in REASONS.items()
}
_STEERING_PREFIXES = (
    b"x-smg-",
    b"x-override-",
    b"x-data-parallel",
    b"x-conversation-",
    b"x-conserve-",
)
_STOPPED_BACK = _HOP_BY_HOP | {
    b"content-length",
    b"x-conserve-decoder",
    b"x-conserve-prefiller",
    b"x-conserve-reason",
    CONVERSATION_HEADER,
    REQUEST_ID_HEADER,
}


def is_stopped(name: bytes) -> bool:
    """Whether a request header (lower case) stays at the router."""
    return name in STOPPED or (name[:2] == b"x-" and name.startswith(_STEERING_PREFIXES))


def split_request_headers(
    headers: Headers, stopped: frozenset[bytes] = frozenset()
) -> tuple[bytes, dict[bytes, bytes]]:
    """The headers that go on to the workers, ready to send, and those read by the router.

    `stopped` are names that stay here besides those that always do.
    """
    forward: list[bytes] = []
    ours: dict[bytes, bytes] = {}
    dropped = stopped
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            dropped |= {token.strip().lower() for token in value.split(b",")}
        if name in _OURS:
            ours[name] = value
    for name, value in headers:
        if not is_stopped(name) and name not in dropped:
            forward += (name, b": ", value, b"\r\n")
    return b"".join(forward), ours


def ours_if_no_other_differs(headers: Headers, last: Headers) -> dict[bytes, bytes] | None:
    """The headers read by the router, if they are all that tells two requests' headers apart.

    None of them goes on to the workers, so what does is the same.
    """
    if len(headers) != len(last):
        return None
    ours: dict[bytes, bytes] = {}
    for header, before in zip(headers, last, strict=True):
        name = header[0]
        if name in _OURS:
            ours[name] = header[1]
            if name != before[0]:
                return None
        elif header is not before and header != before:
            return None
    return ours


def content_length(headers: Headers) -> int | None:
    """The declared length of an answer, if it has one."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


@lru_cache(maxsize=4096)
def placement_lines(
    decoder: WorkerId, prefiller: WorkerId | None, reason: PlacementReason
) -> bytes:
    """Where a turn ran and why, for the client: names of workers as in the tier map."""
    lines = f"x-conserve-decoder: {decoder}\r\nx-conserve-reason: {reason.value}\r\n"
    if prefiller is not None:
        lines += f"x-conserve-prefiller: {prefiller}\r\n"
    return lines.encode()


def answer_head(status: int, headers: Headers, extra: bytes) -> bytes:
    """A head for the client: the worker's headers less hop-by-hop ones, and ours."""
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status]
    for name, value in headers:
        if name not in _STOPPED_BACK:
            lines.append(name + b": " + value + b"\r\n")
    lines.append(extra)
    lines.append(b"\r\n")
    return b"".join(lines)
