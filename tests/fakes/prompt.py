"""The prompt of a request, as the fake worker counts it."""

from typing import Any


class BadPrompt(Exception):
    """The body holds no prompt of a shape a server takes."""


def prompt_of(body: dict[str, Any]) -> str:
    """The prompt as text of one character a token. Raises `BadPrompt`."""
    try:
        return _prompt_of(body)
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise BadPrompt(str(error)) from error


def _prompt_of(body: dict[str, Any]) -> str:
    if "messages" in body:
        parts = []
        for message in body["messages"]:
            content = message.get("content") or ""
            if isinstance(content, list):
                content = "".join(part.get("text", "") for part in content)
            parts.append(content)
        return "".join(parts)
    if body.get("input_ids"):
        return "".join(map(chr, body["input_ids"]))
    text = body.get("prompt") or body.get("text") or ""
    return "".join(text)
