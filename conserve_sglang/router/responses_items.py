"""What a response was given, as the items of a list: read back from the chat messages it became.

A developer's message reads `system` there, which is what the model was told.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import msgspec

from conserve_sglang.router.payload import BadBody
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.responses_answer import item_id
from conserve_sglang.router.responses_request import bad_request

MAX_LIMIT = 100
_DEFAULT_LIMIT = 20
Fields = dict[str, Any]


class Page(msgspec.Struct, frozen=True):
    """Which items of a list are wanted."""

    limit: int = _DEFAULT_LIMIT
    is_newest_first: bool = True
    after: str | None = None


class _Function(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _Call(msgspec.Struct):
    id: str = ""
    function: _Function = msgspec.field(default_factory=_Function)


class _Message(msgspec.Struct):
    role: str
    content: str | list[Fields] = ""
    reasoning_content: str = ""
    tool_calls: list[_Call] = []
    tool_call_id: str = ""


_chain = msgspec.json.Decoder(list[tuple[str, list[_Message]]])


def read_page(query: bytes) -> Page:
    """The query of a request for input items; raises `BadBody`."""
    asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    limit, order = (asked[name][-1] if name in asked else None for name in ("limit", "order"))
    if limit is None:
        limit = str(_DEFAULT_LIMIT)
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 0 < int(limit) <= MAX_LIMIT):
        raise bad_request(f"limit must be a whole number from 1 to {MAX_LIMIT}.", "limit")
    if order not in (None, "asc", "desc"):
        raise bad_request("order must be asc or desc.", "order")
    after = asked["after"][-1] if "after" in asked else None
    return Page(int(limit), order != "asc", after)


def listed(chain: bytes, page: Page) -> bytes:
    """A page of what the last response of a chain was given: what was said up to it, by
    `previous_response_id`, and its own input. Raises `BadBody` if `page.after` is not there."""
    items = list(_items(_chain.decode(chain)))
    if page.is_newest_first:
        items.reverse()
    begin = 0
    if page.after is not None:
        at = next((n for n, item in enumerate(items) if item["id"] == page.after), None)
        if at is None:
            raise BadBody(_NOT_THERE)
        begin = at + 1
    data = items[begin : begin + page.limit]
    return msgspec.json.encode(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": begin + page.limit < len(items),
        }
    )


_NOT_THERE = Problem(
    status=400,
    code="invalid_request",
    message="after must be the id of one of this response's input items.",
    param="after",
)


def _items(chain: list[tuple[str, list[_Message]]]) -> Iterator[Fields]:
    last = len(chain) - 1
    for number, (name, messages) in enumerate(chain):
        index = 0
        for message in messages[:-1]:
            for fields in _items_of(message):
                yield _named(fields, name, index, is_input=True)
                index += 1
        if number < last:  # the last message is what it answered
            for index, fields in enumerate(_items_of(messages[-1])):
                yield _named(fields, name, index, is_input=False)


def _named(fields: Fields, of: str, index: int, *, is_input: bool) -> Fields:
    name = item_id(fields["type"], of, index, is_input=is_input)
    return {"id": name, "status": "completed", **fields}


def _items_of(message: _Message) -> Iterator[Fields]:
    if message.role == "tool":
        output = message.content
        told = output if isinstance(output, str) else list(map(_part, output))
        call_id = message.tool_call_id
        yield {"type": "function_call_output", "call_id": call_id, "output": told}
        return
    if message.role != "assistant":
        content = message.content
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        yield {"type": "message", "role": message.role, "content": list(map(_part, parts))}
        return
    thought, said = message.reasoning_content, message.content
    if thought:
        content = [{"type": "reasoning_text", "text": thought}]
        yield {"type": "reasoning", "summary": [], "content": content}
    if said or not (thought or message.tool_calls):
        part = {"type": "output_text", "text": said, "annotations": [], "logprobs": []}
        yield {"type": "message", "role": "assistant", "content": [part]}
    for call in message.tool_calls:
        name, arguments = call.function.name, call.function.arguments
        yield {"type": "function_call", "call_id": call.id, "name": name, "arguments": arguments}


def _part(part: Fields) -> Fields:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    url = part["image_url"]["url"]
    return {"type": "input_image", "image_url": url, "detail": "auto"}
