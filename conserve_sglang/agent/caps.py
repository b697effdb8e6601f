"""The agent's power caps: it passes what the controller asks for to its host's holder.

The holder sets, under a lease; see `energy/holder_process.py`. The launcher starts it and names its
socket in CONSERVE_CAPS_SOCKET; an agent without one has no GPU in hand, and says so.
"""

import asyncio
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_sglang.energy.holding import KEY_VARIABLE, SOCKET_VARIABLE

NOT_HELD = (
    "no GPU is in hand: the launch that started this agent sets no caps (--no-caps, or a tier map"
    " without caps and budgets)"
)
NO_KEY = (
    "caps are moved by the router of the same launch. For a router that was started by itself set"
    " router.admin_key_env in the tier map, which agents and router then share"
)
_TIMEOUT_S = 3.0
_MOST_BYTES = 65536


class CapsPart:
    """`GET /caps` tells the GPUs in hand; `POST /caps` moves their limits for `lease_s` seconds.

    Any user of a machine reaches its loopback, so a POST has to show the launch's key; `is_gated`
    says that the whole agent asks for the admin key anyway.
    """

    name = "caps"

    def __init__(
        self,
        socket_path: str | None = None,
        *,
        key: str | None = None,
        is_gated: bool = False,
    ) -> None:
        self._path = socket_path or os.environ.get(SOCKET_VARIABLE)
        self._key = key or os.environ.get(KEY_VARIABLE)
        self._is_gated = is_gated
        self._problem: str | None = None
        self._num_held = 0

    def routes(self) -> Sequence[Route]:
        return (Route("/caps", self._caps, methods=["GET", "POST"]),)

    def health(self) -> Mapping[str, Any]:
        told: dict[str, Any] = {"gpus": self._num_held}
        return told if self._problem is None else {**told, "problem": self._problem}

    async def start(self) -> None:
        if self._path is not None:
            self._num_held = len((await self._ask({}))["gpus"])

    async def stop(self) -> None:
        """The lease runs out by itself, and the holder goes back to the launch's caps."""

    async def _caps(self, request: Request) -> Response:
        if self._path is None:
            is_asked = request.method == "POST" and (await _body(request) or {}).get("caps")
            return JSONResponse({"gpus": {}, "error": NOT_HELD}, 409 if is_asked else 200)
        asked: Any = {}
        if request.method == "POST":
            if not self._may_move(request):
                return JSONResponse({"gpus": {}, "error": NO_KEY}, 403)
            asked = await _body(request)
            if asked is None:
                return JSONResponse({"error": "the body is no JSON object"}, 400)
        answer = await self._ask(asked)
        return JSONResponse(answer, 200 if "error" not in answer else 409)

    def _may_move(self, request: Request) -> bool:
        if self._is_gated:
            return True
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        return self._key is not None and hmac.compare_digest(shown.encode(), self._key.encode())

    async def _ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = await asyncio.wait_for(self._talk(asked), _TIMEOUT_S)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            said = str(error) or "too slow"
            self._problem = f"the holder of the caps does not answer: {said}"
            return {"gpus": {}, "error": self._problem}
        self._problem = None
        return answer

    async def _talk(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=_MOST_BYTES)
        try:
            writer.write(json.dumps(asked).encode() + b"\n")
            answer: dict[str, Any] = json.loads(await reader.readline())
        finally:
            writer.close()
        return answer


async def _body(request: Request) -> dict[str, Any] | None:
    try:
        body = json.loads(await request.body())
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
