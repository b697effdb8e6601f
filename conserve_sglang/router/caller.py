"""Who a connection's requests come from, and what the one is called that is being answered."""

import asyncio
from typing import Any

from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.router.access_log import AccessLog, peer_of
from conserve_sglang.router.asker import Asker
from conserve_sglang.router.keyring import Keyring
from conserve_sglang.router.measured import MeasuredTurn
from conserve_sglang.router.request_ids import REQUEST_ID_HEADER, id_in, request_line
from conserve_sglang.router.request_reader import Request, RequestReader
from conserve_sglang.router.salt import Salt
from conserve_sglang.router.translation import Voice
from conserve_sglang.workers.upstream import Headers


class Caller(asyncio.Protocol):
    """What is known of a client, and of its request."""

    __slots__ = (
        "_access",
        "_reader",
        "_request",
        "_transport",
        "asker",
        "judged_by",
        "last_headers",
        "last_split",
        "request_line",
        "salt",
        "tenant",
        "voice",
    )

    def __init__(self, max_body_bytes: int, access: AccessLog | None) -> None:
        self._access = access
        self._reader = RequestReader(max_body_bytes)
        self._transport: Any = None
        self._request: Request | None = None  # the one being answered
        self.request_line = b""  # with its id, once that is known; see `request_ids`
        self.asker: Asker | None = None
        # Of the last request let in: its headers, what became of them, whose it was, by which keys.
        self.last_headers: Headers | None = None
        self.last_split: tuple[bytes, dict[bytes, bytes]] = (b"", {})
        self.tenant = DEFAULT_TENANT
        self.salt: Salt | None = None  # of the tenant's KV, where there are keys
        self.judged_by: Keyring | None = None
        self.voice: Voice | None = None  # for errors, where they are not told in OpenAI's shape

    @property
    def request_id(self) -> str:
        """What the request is called that is being read or answered."""
        return id_in(self.request_line or self._named())

    @property
    def peer(self) -> str:
        """The address it comes from."""
        return peer_of(self._transport)

    @property
    def _is_head(self) -> bool:
        """Whether the request being answered is one whose answer has no body."""
        return self._request is not None and self._request.method == "HEAD"

    def _named(self) -> bytes:
        """Find out what the request is called."""
        request = self._request
        headers = self._reader.begun[1] if request is None else request.headers
        self.request_line = line = request_line(dict(headers).get(REQUEST_ID_HEADER))
        return line

    def _log(self, status: int, code: str | None) -> None:
        """To the access log, which hears of turns otherwise."""
        request = self._request
        if self._access is None or request is None or isinstance(self.asker, MeasuredTurn):
            return
        tenant = None if self.last_headers is None else self.tenant.tenant_id
        self._access.answered(request, status, code, tenant, self.peer, self.request_line)
