"""A stored response, asked for by its id: the object, what it was given, and its end."""

from collections.abc import Callable
from functools import partial
from urllib.parse import parse_qs, unquote_to_bytes

from conserve_sglang.router.admission import TOO_MANY_BYTES
from conserve_sglang.router.client import ClientConnection
from conserve_sglang.router.inquiry import Inquirer, fail
from conserve_sglang.router.payload import BadBody
from conserve_sglang.router.ports import About, Question, Subject
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.refusals import wrong_method
from conserve_sglang.router.request_reader import Request
from conserve_sglang.router.responses_items import Page, listed, read_page
from conserve_sglang.router.responses_request import bad_request

_JSON = [(b"content-type", b"application/json")]
_READS = ("GET", "HEAD")
NOTHING_TO_CANCEL = Problem(
    status=400,
    code="invalid_request",
    message="Only responses created with background can be cancelled, and this router serves none:"
    " close the connection to stop an answer.",
)
NOTHING_THERE = Problem(
    status=404,
    code="unknown_path",
    message="There is nothing at this path. GET and DELETE are served at /v1/responses/ID, GET at"
    " /v1/responses/ID/input_items.",
)


def serve_response(path: bytes, request: Request, client: ClientConnection, about: About) -> None:
    """Answer a request for `/v1/responses/` and this; raises `BadBody`."""
    escaped, _, part = path.partition(b"/")
    method, query = request.method, request.target.partition(b"?")[2]
    tenant, name = client.tenant.tenant_id, unquote_to_bytes(escaped)
    go_on: Callable[[bytes], None] | None = None
    if part == b"" and method in (*_READS, "DELETE"):
        subject = Subject.FORGET if method == "DELETE" else Subject.RESPONSE
        if method != "DELETE":
            _check_query(query)
    elif part == b"input_items" and method in _READS:
        subject, go_on = Subject.ITEMS, partial(_list, client, read_page(query))
    else:
        client.answer_problem(_refused(part, method))
        return
    inquirer = client.asker = Inquirer(client, go_on)
    about.ask(Question(subject, tenant, name), inquirer.hear)


def _refused(part: bytes, method: str) -> Problem:
    if part == b"cancel":
        return NOTHING_TO_CANCEL if method == "POST" else wrong_method(method, "POST")
    if part == b"input_items":
        return wrong_method(method, "GET, HEAD")
    return NOTHING_THERE if part else wrong_method(method, "GET, HEAD, DELETE")


def _check_query(query: bytes) -> None:
    asked = parse_qs(query.decode("latin-1"))
    if asked.get("stream", ["false"])[-1] == "true":
        why = "Only background responses can be streamed again, and this router serves none."
        raise bad_request(f"{why} Leave stream out.", "stream")


def _list(client: ClientConnection, page: Page, chain: bytes) -> None:
    client.asker = None
    try:
        if not client.take_on(len(chain)):
            raise BadBody(TOO_MANY_BYTES)
        client.answer(200, _JSON, listed(chain, page))
    except BadBody as error:
        client.answer_problem(error.problem)
    except Exception:
        fail(client)
