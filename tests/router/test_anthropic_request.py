"""What a Messages request becomes as a chat completion."""

import json
from typing import Any

import pytest

from conserve_sglang.router.anthropic import CountCall, MessagesCall
from conserve_sglang.router.anthropic_request import session_in
from conserve_sglang.router.payload import BadBody

TOOL = {"name": "f", "description": "does f", "input_schema": {"type": "object"}}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "max_tokens": 5, "messages": list(messages), **fields}
    asked: dict[str, Any] = json.loads(MessagesCall("req_1").read(json.dumps(body).encode()))
    return asked


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said, "cache_control": {"type": "ephemeral"}}


def test_plain_request() -> None:
    assert chat(user("hello")) == {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "hello"}],
    }


def test_sampling_fields_keep_their_meaning() -> None:
    asked = chat(
        user("x"), temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["a"], stream=True,
        metadata={"user_id": "u"}, service_tier="auto", context_management={"edits": []},
    )  # fmt: skip
    for name, value in {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop": ["a"]}.items():
        assert asked[name] == value
    assert asked["stream"] is True
    assert asked["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert asked["user"] == "u"
    assert not {"service_tier", "context_management", "metadata"} & set(asked)


@pytest.mark.parametrize("system", ["one\ntwo", [text("one"), text("two")]])
def test_system_prompt_is_the_first_message(system: Any) -> None:
    first, _ = chat(user("x"), system=system)["messages"]
    assert first == {"role": "system", "content": "one\ntwo"}


def test_what_claude_code_changes_in_each_request_is_left_out() -> None:
    def system(nonce: str, left: int) -> Any:
        header = f"x-anthropic-billing-header: cc_version=2.1; cch={nonce};"
        budget = f"<total_tokens>{left} tokens left</total_tokens>"
        return [text(header), text("You are Claude Code."), text(f"Rules.\n{budget}")]

    first = chat(user("x"), system=system("aaa", 100))["messages"][0]
    assert first == chat(user("x"), system=system("bbb", 90))["messages"][0]
    assert first["content"] == "You are Claude Code.\nRules.\n"
    alone = chat(user("x"), system="x-anthropic-billing-header: cch=1;\nBe brief.")
    assert alone["messages"][0]["content"] == "Be brief."
    assert chat(user("x"), system=[text("x-anthropic-billing-header: cch=1;")]) == chat(user("x"))


def test_text_about_those_marks_stays_in_messages() -> None:
    said = "x-anthropic-billing-header: what is it?"
    assert chat(user(said))["messages"] == [{"role": "user", "content": said}]


def test_results_come_where_they_stood_among_text_and_images() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    linked = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [text("a"), text("b")]}
    pictured = {"type": "tool_result", "tool_use_id": "t2", "content": [text("c"), image]}
    messages = chat(user([text("before"), result, pictured, text("after"), linked]))["messages"]
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    assert messages == [
        {"role": "user", "content": "before"},
        {"role": "tool", "tool_call_id": "t1", "content": "a\nb"},
        {"role": "tool", "tool_call_id": "t2", "content": [{"type": "text", "text": "c"}, shown]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "after"},
                {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no file", "Error: no file"),
        ([text("no"), text("file")], "Error: no\nfile"),
        (None, "Error: "),
    ],
)
def test_error_of_a_tool_is_told_to_the_model(content: Any, told: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "is_error": True, "content": content}
    assert chat(user([result]))["messages"][0]["content"] == told


def test_answer_sent_back_is_one_message() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": [1, {"b": None}]}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    redacted = {"type": "redacted_thinking", "data": "xx"}
    said = assistant([redacted, thought, text("I will"), use, text(" now")])
    message = chat(user("x"), said, user("y"))["messages"][1]
    arguments = message["tool_calls"][0]["function"].pop("arguments")
    assert json.loads(arguments) == {"a": [1, {"b": None}]}
    assert message == {
        "role": "assistant",
        "content": "I will now",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f"}}],
    }


def test_answer_begun_by_the_client_is_continued() -> None:
    assert chat(user("x"), assistant("It is"))["continue_final_message"] is True
    assert "continue_final_message" not in chat(user("x"), assistant("It is"), user("y"))


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            {
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "parallel_tool_calls": False,
            },
        ),
    ],
)
def test_tools_and_the_choice_among_them(choice: Any, chosen: dict[str, Any]) -> None:
    asked = chat(user("x"), tools=[{**TOOL, "strict": True}], tool_choice=choice)
    function = {"name": "f", "description": "does f", "parameters": {"type": "object"}}
    assert asked["tools"] == [{"type": "function", "function": {**function, "strict": True}}]
    for name in ("tool_choice", "parallel_tool_calls"):
        assert asked.get(name) == chosen.get(name)


@pytest.mark.parametrize(
    ("kind", "thinks"), [("enabled", True), ("adaptive", True), ("disabled", False)]
)
def test_thinking_is_switched(kind: str, thinks: bool) -> None:
    asked = chat(user("x"), thinking={"type": kind, "budget_tokens": 2000})
    assert asked["chat_template_kwargs"] == {"thinking": thinks, "enable_thinking": thinks}


def test_output_config() -> None:
    schema = {"type": "object"}
    asked = chat(
        user("x"),
        output_config={"effort": "xhigh", "format": {"type": "json_schema", "schema": schema}},
    )
    assert asked["reasoning_effort"] == "max"
    assert asked["response_format"]["json_schema"]["schema"] == schema


def test_only_the_prompt_is_counted() -> None:
    body = {"model": "m", "messages": [user("x")], "system": "s", "tools": [TOOL]}
    asked = json.loads(CountCall("req_1").read(json.dumps(body).encode()))
    assert set(asked) == {"model", "messages", "tools"}
    assert asked["messages"][0] == {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\]\.role"),
        ({"messages": [user([{"type": "video"}])]}, "video"),
        ({"messages": [user([{"type": "tool_use", "id": "a", "name": "b"}])]}, "user's message"),
        ({"messages": [assistant([{"type": "tool_result", "tool_use_id": "a"}])]}, "assistant's"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "run by Anthropic"),
        ({"tool_choice": {"type": "any"}}, "no tools"),
        ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [TOOL]}, "'g'"),
    ],
)
def test_what_cannot_be_served_is_named(fields: dict[str, Any], why: str) -> None:
    body = {"model": "m", "max_tokens": 5, "messages": [user("x")], **fields}
    with pytest.raises(BadBody, match=why):
        MessagesCall("req_1").read(json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"\xff", b'{"messages":' + b"[" * 5000),
        b'{"model":"m","max_tokens":1,"messages":[{"role":"assistant","content":'
        b'[{"type":"tool_use","id":"t","name":"f","input":{"a":"\xff"}}]}]}',
    ],
)
def test_what_is_no_request_at_all_is_refused(body: bytes) -> None:
    with pytest.raises(BadBody):
        MessagesCall("req_1").read(body)


@pytest.mark.parametrize(
    ("user_id", "session"),
    [
        ("user_ab12_account_1-2_session_3c-4d", "3c-4d"),
        ('{"device_id":"d","account_uuid":"","session_id":"3c-4d"}', "3c-4d"),
        ('{"device_id":"d"}', None),
        ("{nothing", None),
        ("someone", None),
        (None, None),
    ],
)
def test_session_in_user_id(user_id: str | None, session: str | None) -> None:
    assert session_in(user_id) == session
