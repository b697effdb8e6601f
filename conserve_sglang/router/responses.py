"""The OpenAI Responses API over chat completions.

A request that names the response before it is given that one's history first. So it is a turn that
extends a known history, and belongs to its conversation as any other such turn does.
"""

import os
import time
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from conserve_sglang.router.chat_answer import UNREADABLE_ANSWER, whole_answer
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.responses_answer import (
    ResponseStream,
    chat_message,
    ended,
    items_of,
    usage_of,
)
from conserve_sglang.router.responses_request import (
    Request,
    bad_request,
    new_messages,
    read_request,
    to_chat,
)
from conserve_sglang.router.responses_store import Stored
from conserve_sglang.router.translation import UnreadableAnswer

Keep = Callable[[str, Stored], None]


class ResponsesCall:
    """One `POST /v1/responses`. `keep` stores what it said under its id, with the whole object if
    `keeps_object`; None: nothing is stored.

    `read` comes first, then, when the history it goes on from is there, `chat`.
    """

    __slots__ = (
        "_added", "_base", "_keep_as", "_keeps_object", "_parts", "_request", "_stream",
        "conversation_name", "header_lines", "previous",
    )  # fmt: skip

    path: ClassVar[str] = "/v1/responses"

    def __init__(self, keep: Keep | None, *, keeps_object: bool = True) -> None:
        self.header_lines = b""
        self.conversation_name: str | None = None
        self._keep_as = keep
        self._keeps_object = keeps_object
        self._base: dict[str, Any] = {}
        self._stream: ResponseStream | None = None
        self._parts: list[bytes] = []
        self._request: Request
        self.previous: str | None = None  # the response it goes on from
        self._added = b""  # what the request said

    def read(self, body: bytes) -> None:
        """Take the request in; raises `BadBody`."""
        self._request = request = read_request(body)
        self.previous = request.previous_response_id
        self._added = b",".join(msgspec.json.encode(each) for each in new_messages(request))
        if not self._added:
            raise bad_request("The request has no input.", "input")
        if request.store is False:
            self._keep_as = None
        self._base = _base(request, self._keep_as is not None)
        if request.stream:
            self._stream = ResponseStream(self._base)

    def chat(self, history: bytes = b"") -> bytes:
        """The chat completion that asks the same, after the messages of a history (JSON, with
        commas between them); raises `BadBody`."""
        request, added = self._request, self._added
        del self._request  # it may be large, and the turn long
        if self._keep_as is None:
            self._added = b""
        return to_chat(request, [history, added] if history else [added])

    def feed(self, data: bytes, is_last: bool) -> bytes:
        """What goes to the client for the next bytes of the chat answer."""
        stream = self._stream
        if stream is not None:
            told = stream.feed(data, is_last)
            if is_last and stream.is_complete:
                self._keep(chat_message(stream.items), stream.response)
            return told
        self._parts.append(data)
        return self._whole() if is_last else b""

    def _whole(self) -> bytes:
        read = whole_answer(b"".join(self._parts))
        if read is None:
            raise UnreadableAnswer(UNREADABLE_ANSWER)
        choice, said, counts = read
        items = items_of(said, self._base["id"])
        end = ended(choice)
        output = [item.fields(end["status"]) for item in items]
        fields = {**self._base, **end, "output": output, "usage": usage_of(counts)}
        response = msgspec.json.encode(fields)
        self._keep(chat_message(items), response)
        return response

    def _keep(self, answer: bytes, response: bytes) -> None:
        if self._keep_as is not None:
            said = self._added + b"," + answer
            response = response if self._keeps_object else b""
            self._keep_as(self._base["id"], Stored(said, self.previous, response))

    def problem(self, problem: Problem) -> bytes:
        """An error as a whole body."""
        return problem.to_json()

    def problem_event(self, problem: Problem) -> bytes:
        """An error as an event, for a stream that has begun."""
        return problem.to_event() if self._stream is None else self._stream.problem_event(problem)


def _base(request: Request, keeps: bool) -> dict[str, Any]:
    """What a response tells from its beginning."""
    wanted = request.text.format if request.text is not None else None
    told: dict[str, Any] = {"type": "text"}
    if wanted is not None and wanted.type != "text":
        told = {"type": wanted.type}
        if wanted.type == "json_schema":
            told |= {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}
    return {
        "id": "resp_" + os.urandom(16).hex(),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata,
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {
            "effort": request.reasoning.effort if request.reasoning is not None else None,
            "summary": None,
        },
        "store": keeps,
        "temperature": request.temperature,
        "text": {"format": told},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }
