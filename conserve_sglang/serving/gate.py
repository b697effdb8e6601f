"""Who may use a control port: whoever has its key, if it has one."""

import hmac

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from conserve_sglang.serving.problems import problem_body
from conserve_sglang.tiermap.keys import key_digest

STRANGER = "is_stranger"
"""Name of the request's state that says: whoever asks has not shown the key."""

OPEN_PATHS = frozenset({"/health", "/ready", "/live", "/readiness", "/liveness"})
"""Asked by whoever watches over a process, and has no key."""

_BODY = problem_body(
    401,
    "invalid_api_key",
    "The control port asks for its key. Send Authorization: Bearer KEY, with the key of"
    " router.admin_key_env.",
)
_HEADERS = {"content-type": "application/json", "www-authenticate": "Bearer"}


class Gate:
    """Lets requests with the key through to `app`; of `OPEN_PATHS` everybody is told the status."""

    def __init__(self, app: ASGIApp, admin_key: str) -> None:
        self._app = app
        self._digest = key_digest(admin_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] != "http" or self._has_key(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif scope["path"] in OPEN_PATHS:
            await self._app({**scope, "state": {STRANGER: True}}, receive, send)
        else:
            await Response(_BODY, 401, _HEADERS)(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = key_digest(key.strip().encode("latin-1"))
        return hmac.compare_digest(digest, self._digest) and scheme.lower() == "bearer"
