"""An Anthropic Messages request as the chat completion that asks the same.

Equal blocks become equal chat messages in every turn, so that a conversation's prefix stays what
its decoder has cached.
"""

import re
from typing import Any

import msgspec

from conserve_sglang.router.anthropic_types import (
    Block,
    Counted,
    Image,
    Message,
    RedactedThinking,
    Request,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
    UrlSource,
    bad_request,
)
from conserve_sglang.router.salt import SALT_FIELDS
from conserve_sglang.workers.unreadable import UNREADABLE

# Claude Code writes these into the system prompt, with a value that is new in each request: left
# in, nothing after them would ever be found in a cache.
_VOLATILE = re.compile(
    r"x-anthropic-billing-header:[^\n]*\n?|<total_tokens>[^<]*</total_tokens>\n?"
)
_LEGACY_SESSION = re.compile(r"_session_([0-9A-Za-z-]+)\Z")


Parts = list[dict[str, Any]]


class _Identity(msgspec.Struct):
    session_id: str | None = None


_identity = msgspec.json.Decoder(_Identity)


def session_in(user_id: str | None) -> str | None:
    """The session that Claude Code writes into `metadata.user_id`, in its old and new form."""
    if user_id is None:
        return None
    if user_id.startswith("{"):
        try:
            return _identity.decode(user_id).session_id
        except UNREADABLE:
            return None
    found = _LEGACY_SESSION.search(user_id)
    return found[1] if found else None


def to_chat(request: Request) -> bytes:
    """The body of the chat completion."""
    chat = _prompt_of(request)
    chat["max_tokens"] = request.max_tokens
    if request.stream:
        chat["stream"] = True
        # message_start tells the prompt's tokens, so they are asked for with the first piece.
        chat["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    for name in ("temperature", "top_p", "top_k", *SALT_FIELDS):
        value = getattr(request, name)
        if value is not None:
            chat[name] = value
    if request.stop_sequences:
        chat["stop"] = request.stop_sequences
    if request.metadata is not None and request.metadata.user_id is not None:
        chat["user"] = request.metadata.user_id
    output = request.output_config
    if output is not None and output.format is not None:
        schema = {"name": "answer", "schema": output.format.schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return msgspec.json.encode(chat)


def to_prompt(counted: Counted) -> bytes:
    """The part of the chat completion that becomes its prompt."""
    return msgspec.json.encode(_prompt_of(counted))


def _prompt_of(request: Counted) -> dict[str, Any]:
    messages = _system_messages(request.system)
    for message in request.messages:
        messages += _chat_messages(message)
    chat: dict[str, Any] = {"model": request.model, "messages": messages}
    if request.tools:
        chat["tools"] = [_tool(tool) for tool in request.tools]
    if request.tool_choice is not None:
        chat |= _tool_choice(request.tool_choice, {tool.name for tool in request.tools or ()})
    if request.thinking is not None:
        thinks = request.thinking.type != "disabled"
        # Each family of models has its own name for the switch, and ignores the other.
        chat["chat_template_kwargs"] = {"thinking": thinks, "enable_thinking": thinks}
    output = request.output_config
    if output is not None and output.effort is not None:
        chat["reasoning_effort"] = "max" if output.effort == "xhigh" else output.effort
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant" and not last.get("tool_calls"):
        chat["continue_final_message"] = True  # the answer goes on where the client left off
    return chat


def _system_messages(system: str | list[Text] | None) -> list[dict[str, Any]]:
    texts = [system] if isinstance(system, str) else [block.text for block in system or ()]
    text = "\n".join(stable for each in texts if (stable := _VOLATILE.sub("", each)))
    return [{"role": "system", "content": text}] if text else []


def _chat_messages(message: Message) -> list[dict[str, Any]]:
    content = message.content
    if isinstance(content, str):
        return [{"role": message.role, "content": content}]
    if message.role == "assistant":
        return [_assistant_message(content)]
    return _asking_messages(message.role, content)


def _assistant_message(blocks: list[Block]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls = []
    for block in blocks:
        if isinstance(block, Text):
            texts.append(block.text)
        elif isinstance(block, Thinking):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUse):
            function = {"name": block.name, "arguments": bytes(block.input).decode()}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, RedactedThinking):
            raise bad_request(
                "An assistant's message holds text, thinking and tool_use blocks only."
            )
    # The pieces of one answer, which tool calls parted, are that answer again without a seam.
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _asking_messages(role: str, blocks: list[Block]) -> list[dict[str, Any]]:
    """A user's blocks in their order; each tool result is a message of its own."""
    messages: list[dict[str, Any]] = []
    parts: Parts = []
    for block in blocks:
        if isinstance(block, Text | Image):
            parts.append(_part(block))
        elif isinstance(block, ToolResult):
            if parts:
                messages.append({"role": role, "content": _content(parts)})
                parts = []
            answered = {"role": "tool", "tool_call_id": block.tool_use_id}
            messages.append({**answered, "content": _result(block)})
        else:
            raise bad_request("A user's message holds text, image and tool_result blocks only.")
    if parts or not messages:
        messages.append({"role": role, "content": _content(parts)})
    return messages


def _content(parts: Parts) -> str | Parts:
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts


def _part(block: Text | Image) -> dict[str, Any]:
    if isinstance(block, Text):
        return {"type": "text", "text": block.text}
    source = block.source
    if isinstance(source, UrlSource):
        return {"type": "image_url", "image_url": {"url": source.url}}
    url = f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _result(block: ToolResult) -> str | Parts:
    content = block.content or ""
    if isinstance(content, str):
        return f"Error: {content}" if block.is_error else content
    parts = [_part(each) for each in content]
    if all("text" in part for part in parts):
        text = "\n".join(part["text"] for part in parts)
        return f"Error: {text}" if block.is_error else text
    return [{"type": "text", "text": "Error:"}, *parts] if block.is_error else parts


def _tool(tool: Tool) -> dict[str, Any]:
    if tool.type not in (None, "custom") or not bytes(tool.input_schema).startswith(b"{"):
        raise bad_request(
            f"The tool {tool.name!r} of type {tool.type!r} is run by Anthropic and not served here."
            " Give tools of your own, with an input_schema.",
            "tools",
        )
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice, names: set[str]) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    if choice.disable_parallel_tool_use:
        chat["parallel_tool_calls"] = False
    if choice.type == "none":
        return {"tool_choice": "none"}
    if choice.type == "tool":
        if choice.name not in names:
            raise bad_request(f"tool_choice names {choice.name!r}, which is not among the tools.")
        return {**chat, "tool_choice": {"type": "function", "function": {"name": choice.name}}}
    if names:
        chat["tool_choice"] = "auto" if choice.type == "auto" else "required"
    elif choice.type == "any":
        raise bad_request("tool_choice asks for a tool call, but the request has no tools.")
    return chat
