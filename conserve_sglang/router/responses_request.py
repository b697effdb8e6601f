"""An OpenAI Responses request as the chat completion that asks the same.

The items of one answer, which may be thoughts, text and calls, become the one assistant message
they were, so that a history sent back is the history its decoder has cached.
"""

from typing import Any, Literal

import msgspec

from conserve_sglang.core.errors import clause
from conserve_sglang.router.payload import BadBody
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.salt import SALT_FIELDS
from conserve_sglang.workers.unreadable import UNREADABLE

_encode = msgspec.json.encode


class Part(msgspec.Struct):
    """A piece of content."""

    type: str = "input_text"
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None


class Item(msgspec.Struct):
    """A message, a call, its result, or what was thought; a message may leave out its type."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class Tool(msgspec.Struct):
    """A tool; only functions are the client's own."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    strict: bool | None = None


class NamedTool(msgspec.Struct):
    """The one tool to be called."""

    type: str
    name: str | None = None


class Format(msgspec.Struct):
    """What the text of an answer looks like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    schema: msgspec.Raw = msgspec.Raw(b"{}")
    strict: bool | None = None


class TextConfig(msgspec.Struct):
    """How to put the answer."""

    format: Format | None = None


class Reasoning(msgspec.Struct):
    """How much to think."""

    effort: str | None = None


class Request(msgspec.Struct):
    """A request for one response. Raw members are told back as they came."""

    input: str | list[Item] = ""
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    user: str | None = None
    background: bool | None = None
    cache_salt: str | None = None  # SGLang's, as is the next
    extra_key: str | None = None
    conversation: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    metadata: msgspec.Raw = msgspec.Raw(b"{}")


_request = msgspec.json.Decoder(Request)
_ABSENT = (b"", b"null")
_HELD_ELSEWHERE = "is kept by OpenAI's own service and not served here. Send the input itself."


def read_request(body: bytes) -> Request:
    """Decode a request; raises `BadBody`."""
    try:
        request = _request.decode(body)
    except UNREADABLE as error:
        why = clause(error)
        raise bad_request(f"This Responses request cannot be served here: {why}.") from error
    if request.background:
        raise bad_request("background is not served: wait for the answer, or stream.", "background")
    for name in ("conversation", "prompt"):
        if bytes(getattr(request, name)) not in _ABSENT:
            raise bad_request(f"The field {name!r} {_HELD_ELSEWHERE}", name)
    if request.include and "message.output_text.logprobs" in request.include:
        raise bad_request("Log probabilities are served by /v1/chat/completions only.", "include")
    return request


def bad_request(message: str, param: str | None = None) -> BadBody:
    """A refusal of the request."""
    return BadBody(Problem(status=400, code="invalid_request", message=message, param=param))


def new_messages(request: Request) -> list[dict[str, Any]]:
    """What the request adds to its history, as chat messages."""
    if isinstance(request.input, str):
        return [{"role": "user", "content": request.input}]
    messages: list[dict[str, Any]] = []
    answer: dict[str, Any] | None = None  # the assistant message whose items are being read
    for item in request.input:
        is_of_answer = item.type in ("function_call", "reasoning") or item.role == "assistant"
        if not is_of_answer:
            answer = None
            messages.append(_message(item))
            continue
        if answer is None:
            answer = {"role": "assistant", "content": ""}
            messages.append(answer)
        _add_to_answer(answer, item)
    return messages


def _message(item: Item) -> dict[str, Any]:
    if item.type == "function_call_output":
        output = item.output if item.output is not None else ""
        return {"role": "tool", "tool_call_id": item.call_id or "", "content": _content(output)}
    if item.type != "message" or item.role is None:
        raise bad_request(
            f"An input item of type {item.type!r} cannot be served here. Send messages, function"
            " calls and their outputs.",
            "input",
        )
    # A developer message is a system message by its newer name, which few chat templates know.
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": _content(item.content or "")}


def _add_to_answer(answer: dict[str, Any], item: Item) -> None:
    if item.type == "function_call":
        function = {"name": item.name or "", "arguments": item.arguments or "{}"}
        call = {"id": item.call_id or "", "type": "function", "function": function}
        answer.setdefault("tool_calls", []).append(call)
        return
    content = item.content or ""
    if not isinstance(content, str):
        content = "".join(part.text or part.refusal or "" for part in content)
    if item.type == "message":
        answer["content"] += content
    elif content:
        answer["reasoning_content"] = content


def _content(content: str | list[Part]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in content]
    return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts


def _part(part: Part) -> dict[str, Any]:
    if part.type in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.text or ""}
    if part.type == "input_image" and part.image_url is not None:
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    raise bad_request(f"Content of type {part.type!r} cannot be served here.", "input")


def to_chat(request: Request, history: list[bytes]) -> bytes:
    """The body of the chat completion; `history` is JSON, several messages in each piece."""
    pieces = history
    if request.instructions:
        pieces = [_encode({"role": "system", "content": request.instructions}), *history]
    messages = msgspec.Raw(b"[" + b",".join(pieces) + b"]")
    chat: dict[str, Any] = {"model": request.model, "messages": messages}
    if request.model is None:
        del chat["model"]
    if request.stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    if request.max_output_tokens is not None:
        chat["max_tokens"] = request.max_output_tokens
    for name in ("temperature", "top_p", "parallel_tool_calls", "user", *SALT_FIELDS):
        value = getattr(request, name)
        if value is not None:
            chat[name] = value
    chat |= _tools(request)
    if request.reasoning is not None and request.reasoning.effort is not None:
        chat |= _effort(request.reasoning.effort)
    wanted = request.text.format if request.text is not None else None
    if wanted is not None and wanted.type != "text":
        chat["response_format"] = _response_format(wanted)
    return _encode(chat)


def _tools(request: Request) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    if request.tools:
        chat["tools"] = [_tool(tool) for tool in request.tools]
    if request.tool_choice is not None:
        chat["tool_choice"] = _tool_choice(request)
    return chat


def _tool(tool: Tool) -> dict[str, Any]:
    if tool.type != "function":
        raise bad_request(
            f"Tools of type {tool.type!r} are run by OpenAI and not served here. Give functions.",
            "tools",
        )
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.parameters}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(request: Request) -> str | dict[str, Any]:
    choice = request.tool_choice
    if isinstance(choice, str) and choice in ("auto", "none", "required"):
        return choice
    names = {tool.name for tool in request.tools or ()}
    if isinstance(choice, NamedTool) and choice.type == "function" and choice.name in names:
        return {"type": "function", "function": {"name": choice.name}}
    raise bad_request("tool_choice must be auto, none, required, or a function of tools.")


def _effort(effort: str) -> dict[str, Any]:
    if effort == "none":
        # Each family of models has its own name for the switch, and ignores the other.
        return {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}}
    return {"reasoning_effort": "max" if effort == "xhigh" else effort}


def _response_format(wanted: Format) -> dict[str, Any]:
    if wanted.type == "json_object":
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": wanted.name, "schema": wanted.schema}
    if wanted.strict is not None:
        schema["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": schema}
