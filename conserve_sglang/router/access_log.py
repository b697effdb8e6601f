"""The access log: a line for each turn when it is over, and one for each other request's answer.

No line has a prompt, an answer, a key, a query or, unless operators want them, the name of a
conversation in it. What clients chose is cut to a bound, and escaped where it is written.
"""

import logging
import re
from typing import Any

from conserve_sglang.core.ids import TenantId
from conserve_sglang.dispatch import FailureCause, SendTurn
from conserve_sglang.router.conversations import shown_name
from conserve_sglang.router.measured import MeasuredTurn
from conserve_sglang.router.request_ids import id_in
from conserve_sglang.router.request_reader import Request
from conserve_sglang.telemetry.logs import ACCESS_LOGGER, as_text, told
from conserve_sglang.telemetry.metrics import Outcome
from conserve_sglang.workers.usage import Usage

access_log = logging.getLogger(ACCESS_LOGGER)

MAX_PATH_CHARACTERS = 200
_AUTHORITY = re.compile(r"(?i)https?://[^/]*")
_KEY = re.compile(r"(?i)\b(c?sk-)[\w-]{8,}")
_NAMED = ("/v1/conversations/", "/v1/responses/")
_PROBES = frozenset({"/health", "/ready", "/live", "/readiness", "/liveness"})
_PLACES = frozenset({"/v1/place", "/v1/place/report"})  # a placed turn has its own line


class AccessLog:
    """Hears of turns, and of requests that are none. `has_names`: conversations' names are told."""

    def __init__(self, *, has_names: bool = False) -> None:
        self._has_names = has_names

    def stop(self) -> None:
        pass

    # turns

    def sent(self, turn: MeasuredTurn, command: SendTurn) -> None:
        pass

    def began(self, turn: MeasuredTurn) -> None:
        pass

    def failed(self, turn: MeasuredTurn, cause: FailureCause) -> None:
        pass

    def closed(
        self, turn: MeasuredTurn, outcome: Outcome, usage: Usage | None, total_s: float
    ) -> None:
        command, problem = turn.command, turn.problem
        first_s = turn.first_byte_at_s - turn.arrived_at_s
        fields: dict[str, Any] = {
            "request_id": id_in(turn.request_line),
            "turn_id": turn.turn_id,
            "conversation": turn.conversation.key or None,
            "tenant": turn.tenant,
            "turn": None if command is None else command.turn_index,
            "path": turn.path,
            "endpoint": turn.payload.endpoint.value,
            "is_stream": turn.payload.is_stream,
            "status": turn.status,
            "outcome": outcome.value,
            "code": None if problem is None else problem.code,
            "decoder": None if command is None else command.decoder,
            "prefiller": None if command is None else command.prefiller,
            "reason": None if command is None else command.reason.value,
            "attempts": turn.num_attempts,
            "retries": turn.num_retries,
            "interruptions": turn.num_interruptions,
            "continuations": turn.num_continuations,
            "first_byte_s": round(first_s, 6) if turn.has_begun else None,
            "total_s": round(total_s, 6),
            "prompt_tokens": None if usage is None else usage.prompt_tokens,
            "cached_tokens": None if usage is None else usage.cached_tokens,
            "output_tokens": None if usage is None else usage.output_tokens,
            "peer": turn.peer or None,
        }
        if self._has_names:
            fields["name"] = shown_name(turn.conversation)
        access_log.info("%s", as_text(fields), extra=told("turn", **fields))

    # other requests

    def answered(
        self,
        request: Request,
        status: int,
        code: str | None,
        tenant: TenantId | None,
        peer: str,
        request_line: bytes,
    ) -> None:
        """A request that is no turn gets its answer. `tenant`: whose it is, if that is known."""
        path = shown_path(request.target)
        is_quiet = path in _PROBES or (status == 200 and path in _PLACES)
        level = logging.DEBUG if is_quiet else logging.INFO
        if access_log.isEnabledFor(level):
            fields: dict[str, Any] = {
                "request_id": id_in(request_line),
                "method": request.method or None,
                "path": path or None,
                "status": status,
                "code": code,
                "tenant": tenant,
                "peer": peer or None,
            }
            access_log.log(level, "%s", as_text(fields), extra=told("request", **fields))

    def turned_away(self, status: int, code: str, peer: str) -> None:
        """A connection was refused before anything of a request was read."""
        fields = {"status": status, "code": code, "peer": peer or None}
        access_log.info("%s", as_text(fields), extra=told("request", **fields))


def shown_path(target: bytes) -> str:
    """What a request asked for, without what may be secret or personal: the query, a host with its
    credentials, names of conversations, ids of responses, and whatever looks like an API key."""
    path = target.partition(b"?")[0].partition(b"#")[0].decode("latin-1")
    path = _AUTHORITY.sub("", path, 1) if path[:4].lower() == "http" else path
    for prefix in _NAMED:
        if path.startswith(prefix):
            return prefix + "{id}"
    path = _KEY.sub(r"\1***", path[: MAX_PATH_CHARACTERS + 64])
    return path if len(path) <= MAX_PATH_CHARACTERS else path[:MAX_PATH_CHARACTERS] + "..."


def peer_of(transport: Any) -> str:
    """A connection's other end, as `address:port`; empty where it is not known."""
    name = transport.get_extra_info("peername")
    if not isinstance(name, tuple) or len(name) < 2:
        return ""
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"
