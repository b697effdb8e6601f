"""Anthropic Messages requests as they come in: what is read of them, and no more.

Fields that only steer Anthropic's own service (`cache_control`, betas, `service_tier`) are accepted
and say nothing here; a block of a kind that no chat completion can carry is refused by its name.
"""

from typing import Any, Literal

import msgspec

from conserve_sglang.core.errors import clause
from conserve_sglang.router.payload import BadBody
from conserve_sglang.router.problem import Problem
from conserve_sglang.workers.unreadable import UNREADABLE


class Text(msgspec.Struct, tag_field="type", tag="text"):
    """Text."""

    text: str


class Base64Source(msgspec.Struct, tag_field="type", tag="base64"):
    """An image's own bytes."""

    media_type: str
    data: str


class UrlSource(msgspec.Struct, tag_field="type", tag="url"):
    """Where an image is."""

    url: str


class Image(msgspec.Struct, tag_field="type", tag="image"):
    """An image."""

    source: Base64Source | UrlSource


class Thinking(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model thought; its signature is nobody's here."""

    thinking: str


class RedactedThinking(msgspec.Struct, tag_field="type", tag="redacted_thinking"):
    """Thoughts of another provider's model, unreadable here."""


class ToolUse(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call of a tool."""

    id: str
    name: str
    input: msgspec.Raw = msgspec.Raw(b"{}")


class ToolResult(msgspec.Struct, tag_field="type", tag="tool_result"):
    """What a tool answered."""

    tool_use_id: str
    content: str | list[Text | Image] | None = None
    is_error: bool | None = None


Block = Text | Image | Thinking | RedactedThinking | ToolUse | ToolResult


class Message(msgspec.Struct):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(msgspec.Struct):
    """A tool the client runs; one with another type is run by Anthropic."""

    name: str
    input_schema: msgspec.Raw = msgspec.Raw()
    description: str | None = None
    type: str | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    """Whether tools are to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class ThinkingConfig(msgspec.Struct):
    """Whether the model is to think; SGLang has no budget for it."""

    type: Literal["enabled", "disabled", "adaptive"]


class Format(msgspec.Struct):
    """The JSON schema an answer follows."""

    type: Literal["json_schema"]
    schema: msgspec.Raw


class OutputConfig(msgspec.Struct):
    """How to answer."""

    effort: str | None = None
    format: Format | None = None


class Metadata(msgspec.Struct):
    """Who asks."""

    user_id: str | None = None


class Counted(msgspec.Struct, kw_only=True):
    """What `count_tokens` takes: all of a request that becomes its prompt."""

    model: str
    messages: list[Message]
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None


class Request(Counted, kw_only=True):
    """A request for one message."""

    max_tokens: int
    metadata: Metadata | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    cache_salt: str | None = None  # SGLang's, as is the next
    extra_key: str | None = None


_request = msgspec.json.Decoder(Request)
_counted = msgspec.json.Decoder(Counted)


def read_request(body: bytes) -> Request:
    """Decode a request; raises `BadBody`."""
    request: Request = _decoded(_request, body)
    if request.max_tokens < 1:
        raise bad_request("max_tokens must be at least 1.", "max_tokens")
    return request


def read_counted(body: bytes) -> Counted:
    """Decode a request to count tokens; raises `BadBody`."""
    counted: Counted = _decoded(_counted, body)
    return counted


def _decoded(decoder: "msgspec.json.Decoder[Any]", body: bytes) -> Any:
    try:
        body.decode()  # what is copied unread would keep bytes that are not UTF-8
        return decoder.decode(body)
    except UNREADABLE as error:
        why = clause(error)
        raise bad_request(
            f"The body is not a Messages request that can be served here: {why}."
        ) from error


def bad_request(message: str, param: str | None = None) -> BadBody:
    """A refusal of the request."""
    return BadBody(Problem(status=400, code="invalid_request", message=message, param=param))
