"""The Anthropic Messages API, as agents such as Claude Code speak it, over chat completions."""

from typing import ClassVar

import msgspec

from conserve_sglang.router.anthropic_answer import MessageStream, whole_message
from conserve_sglang.router.anthropic_request import session_in, to_chat, to_prompt
from conserve_sglang.router.anthropic_types import read_counted, read_request
from conserve_sglang.router.chat_answer import UNREADABLE_ANSWER
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.translation import UnreadableAnswer

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicCall:
    """What every request of this API has: an id, and errors in its shape."""

    __slots__ = ("conversation_name", "header_lines", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.header_lines = f"request-id: {self.request_id}\r\n".encode()
        self.conversation_name: str | None = None

    def problem(self, problem: Problem) -> bytes:
        """An error as a whole body."""
        kind = _ERROR_TYPES.get(problem.status)
        if kind is None:
            kind = "invalid_request_error" if problem.status < 500 else "api_error"
        error = {"type": kind, "message": problem.message}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": self.request_id})

    def problem_event(self, problem: Problem) -> bytes:
        """An error as an event, for a stream that has begun."""
        return b"event: error\ndata: " + self.problem(problem) + b"\n\n"


class MessagesCall(AnthropicCall):
    """One `POST /v1/messages`."""

    __slots__ = ("_model", "_parts", "_stream")

    path: ClassVar[str] = "/v1/messages"

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self._model = ""
        self._stream: MessageStream | None = None
        self._parts: list[bytes] = []

    def read(self, body: bytes) -> bytes:
        """The chat completion that asks the same; raises `BadBody`."""
        request = read_request(body)
        self._model = request.model
        if request.stream:
            self._stream = MessageStream(request.model, self.problem_event)
        if request.metadata is not None:
            self.conversation_name = session_in(request.metadata.user_id)
        return to_chat(request)

    def feed(self, data: bytes, is_last: bool) -> bytes:
        """What goes to the client for the next bytes of the chat answer."""
        if self._stream is not None:
            return self._stream.feed(data, is_last)
        self._parts.append(data)
        if not is_last:
            return b""
        message = whole_message(b"".join(self._parts), self._model)
        if message is None:
            raise UnreadableAnswer(UNREADABLE_ANSWER)
        return message


class CountCall(AnthropicCall):
    """One `POST /v1/messages/count_tokens`."""

    __slots__ = ()

    def read(self, body: bytes) -> bytes:
        """What a worker is asked to tokenize; raises `BadBody`."""
        return to_prompt(read_counted(body))

    def told(self, count: int) -> bytes:
        """The answer."""
        return msgspec.json.encode({"input_tokens": count})
