"""Errors of our control ports, in the shape that the clients' port has: OpenAI's, as JSON."""

from http import HTTPStatus

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route


def problem_body(status: int, code: str, message: str) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return msgspec.json.encode({"error": error})


def problem_answer(status: int, code: str, message: str) -> bytes:
    """A whole HTTP answer, after which its connection is closed."""
    body = problem_body(status, code, message)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def json_app(routes: list[Route]) -> Starlette:
    """An application of these routes whose every error is JSON that says what to do."""

    async def not_there(request: Request, error: Exception) -> Response:
        shown = request.url.path[:200]
        served = ", ".join(dict.fromkeys(route.path_format for route in routes))
        return _response(404, "unknown_path", f"There is nothing at {shown}. Served: {served}.")

    async def wrong_method(request: Request, error: Exception) -> Response:
        fitting = (r for r in routes if r.matches(request.scope)[0] is not Match.NONE)
        methods = sorted({method for route in fitting for method in route.methods or ()})
        allow = ", ".join(methods)
        message = f"The method {request.method} is not served here. Use {allow}."
        return _response(405, "method_not_allowed", message, {"allow": allow})

    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _response(error.status_code, "invalid_request", error.detail)

    async def fault(request: Request, error: Exception) -> Response:
        message = "The request failed by a fault of ours; the log has it."
        return _response(500, "internal_error", message)

    return Starlette(
        routes=routes,
        exception_handlers={
            404: not_there, 405: wrong_method, HTTPException: other, Exception: fault
        },
    )  # fmt: skip


def _response(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> Response:
    body = problem_body(status, code, message)
    return Response(body, status, headers, media_type="application/json")
