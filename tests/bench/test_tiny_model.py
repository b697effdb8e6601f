"""The tiny model is the same everywhere, and its conversations only grow."""

import json
from pathlib import Path
from typing import Any

import jinja2

from bench.tiny_model import CHAT_TEMPLATE, SPECIAL, VOCAB, write_model

CALL = {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}
GENERATED_CALL = (
    '<tool_call>\n{"name":"get_weather", "arguments":{"city":"Paris","days":2}}\n</tool_call>'
)
TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]


def _render(*messages: dict[str, Any], tools: object = None) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["tojson"] = json.dumps
    template = environment.from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, tools=tools, add_generation_prompt=True)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    write_model(tmp_path / "one")
    write_model(tmp_path / "two")
    for first in (tmp_path / "one").iterdir():
        assert first.read_bytes() == (tmp_path / "two" / first.name).read_bytes()


def test_every_id_has_a_token(tmp_path: Path) -> None:
    write_model(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    ids = [*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]
    assert sorted(ids) == list(range(VOCAB))


def test_a_turn_continues_the_turn_before_and_its_answer() -> None:
    system = {"role": "system", "content": "You help."}
    user = {"role": "user", "content": "Hello"}
    answer = {"role": "assistant", "content": "ab<c"}
    first = _render(system, user, tools=TOOLS)
    second = _render(system, user, answer, user, tools=TOOLS)
    assert second.startswith(first + "ab<c" + SPECIAL[258])


def test_a_tool_call_is_rendered_as_it_was_generated() -> None:
    user = {"role": "user", "content": [{"type": "text", "text": "Weather?"}]}
    answer = {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]}
    result = {"role": "tool", "tool_call_id": "1", "content": "sunny"}
    first = _render(user, tools=TOOLS)
    second = _render(user, answer, result, tools=TOOLS)
    assert second.startswith(first + GENERATED_CALL + SPECIAL[258])
    assert "<|im_start|>tool\nsunny" in second
