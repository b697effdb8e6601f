"""The OpenAI Responses API over chat completions.

A request that names the response before it is given that one's history first. So it is a turn that
extends a known history, and belongs to its conversation as any other such turn does.
"""

import os
import time
from typing import Any

import msgspec

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.chat_answer import UNREADABLE_ANSWER, whole_answer
from conserve_sglang.router.payload import BadBody
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
from conserve_sglang.router.responses_store import ResponseStore, Stored
from conserve_sglang.router.translation import UnreadableAnswer

UNKNOWN_RESPONSE = Problem(
    status=404,
    code="response_not_found",
    message="There is no such response: it never was, was not stored, or is kept no longer.",
)


class ResponsesCall:
    """One `POST /v1/responses`."""

    __slots__ = (
        "_added", "_base", "_parts", "_previous", "_store", "_stream", "_tenant",
        "conversation_name", "header_lines",
    )  # fmt: skip

    def __init__(self, store: ResponseStore, tenant: TenantId) -> None:
        self.header_lines = b""
        self.conversation_name: str | None = None
        self._store = store
        self._tenant = tenant
        self._base: dict[str, Any] = {}
        self._stream: ResponseStream | None = None
        self._parts: list[bytes] = []
        self._previous: str | None = None
        self._added: bytes | None = None  # what the request said, if it is to be stored

    def read(self, body: bytes) -> bytes:
        """The chat completion that asks the same; raises `BadBody`."""
        request = read_request(body)
        added = b",".join(msgspec.json.encode(message) for message in new_messages(request))
        if not added:
            raise bad_request("The request has no input.", "input")
        history = [added]
        self._previous = request.previous_response_id
        if self._previous is not None:
            history = [*self._history(self._previous), added]
        keeps = self._store.is_on and request.store is not False
        self._added = added if keeps else None
        self._base = _base(request, keeps)
        if request.stream:
            self._stream = ResponseStream(self._base)
        return to_chat(request, history)

    def _history(self, response_id: str) -> list[bytes]:
        found = self._store.history(self._tenant, response_id)
        if found is not None:
            return found
        why = "it never was, was not stored, or is kept no longer"
        if not self._store.is_on:
            why = "this router stores none (router.stored_responses_mb is 0, or it has several"
            why += " processes)"
        message = (
            f"There is no response {response_id[:100]!r} to go on from: {why}."
            " Send the whole input instead."
        )
        name = "previous_response_id"
        code = "previous_response_not_found"
        raise BadBody(Problem(status=400, code=code, message=message, param=name))

    def feed(self, data: bytes, is_last: bool) -> bytes:
        """What goes to the client for the next bytes of the chat answer."""
        stream = self._stream
        if stream is not None:
            told = stream.feed(data, is_last)
            if is_last and stream.is_complete:
                self._keep(chat_message(stream.items))
            return told
        self._parts.append(data)
        return self._whole() if is_last else b""

    def _whole(self) -> bytes:
        read = whole_answer(b"".join(self._parts))
        if read is None:
            raise UnreadableAnswer(UNREADABLE_ANSWER)
        choice, said, counts = read
        items = items_of(said)
        self._keep(chat_message(items))
        end = ended(choice)
        output = [item.fields(end["status"]) for item in items]
        response = {**self._base, **end, "output": output, "usage": usage_of(counts)}
        return msgspec.json.encode(response)

    def _keep(self, answer: bytes) -> None:
        if self._added is not None:
            stored = Stored(self._added + b"," + answer, self._previous)
            self._store.put(self._tenant, self._base["id"], stored)

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
