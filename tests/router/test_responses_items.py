"""What a response was given, as a list of items."""

import json
import random
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from conserve_sglang.router.chat_answer import Call, Function, Said
from conserve_sglang.router.payload import BadBody
from conserve_sglang.router.responses_answer import chat_message, items_of
from conserve_sglang.router.responses_items import Page, listed, read_page
from conserve_sglang.router.responses_request import new_messages, read_request

R1, R2 = "resp_" + "1" * 32, "resp_" + "2" * 32
ALL = Page(100, is_newest_first=False)


def added(given: Any, said: Said, name: str) -> list[Any]:
    """What one response adds to its history, as it is stored."""
    request = read_request(json.dumps({"input": given}).encode())
    answer = chat_message(items_of(said, name))
    return [name, [*new_messages(request), msgspec.json.decode(answer)]]


def page_of(chain: list[Any], page: Page = ALL) -> Any:
    return json.loads(listed(msgspec.json.encode(chain), page))


def test_items_of_a_chain_are_those_of_its_responses() -> None:
    calls = [Call(0, "c1", Function("f", "{}")), Call(1, "c2", Function("g", '{"a": 1}'))]
    first = Said("so", "hm", calls)
    image = {"type": "input_image", "image_url": "http://x/y.png", "detail": "auto"}
    outputs: Any = [
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "a"}, image],
        },
    ]
    chain = [added("hello", first, R1), added(outputs, Said("well"), R2)]
    listing = page_of(chain)
    data = listing["data"]
    told = [item.fields("completed") for item in items_of(first, R1)]
    assert data[1:5] == told
    for item in (data[0], *data[5:]):
        assert item.pop("status") == "completed"
    hello: Any = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "hello"}],
    }
    assert [{**item, "id": ""} for item in (data[0], *data[5:])] == [
        {**item, "id": ""} for item in (hello, *outputs)
    ]
    assert data[0]["id"].startswith("msg_")
    assert data[5]["id"].startswith("fco_")
    assert len({item["id"] for item in data}) == len(data) == 7
    assert (listing["first_id"], listing["last_id"]) == (data[0]["id"], data[-1]["id"])
    assert page_of(chain[:1])["data"][0]["id"] == data[0]["id"]


def test_history_sent_back_as_input_is_listed_with_what_is_in_it() -> None:
    given = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": "yes"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
    ]
    data = page_of([added(given, Said("end"), R1)])["data"]
    kinds = [(item["type"], item.get("role")) for item in data]
    assert kinds == [
        ("message", "system"),
        ("message", "user"),
        ("reasoning", None),
        ("message", "assistant"),
        ("function_call", None),
        ("function_call_output", None),
    ]


def test_pages_put_together_are_the_list() -> None:
    given = [{"role": "user", "content": str(number)} for number in range(45)]
    chain = [added(given, Said("end"), R1)]
    whole = [item["id"] for item in page_of(chain)["data"]]
    for is_newest_first in (False, True):
        found, after = [], None
        for limit in (20, 20, 20):
            listing = page_of(chain, Page(limit, is_newest_first, after))
            found += [item["id"] for item in listing["data"]]
            after = listing["last_id"]
            assert listing["has_more"] == (len(found) < 45)
        assert found == (whole[::-1] if is_newest_first else whole)
        empty = page_of(chain, Page(1, is_newest_first, after))
        assert empty == {
            "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False
        }  # fmt: skip
    with pytest.raises(BadBody) as unknown:
        listed(msgspec.json.encode(chain), Page(after="msg_1"))
    assert unknown.value.problem.param == "after"


def test_query_says_which_page() -> None:
    assert read_page(b"") == Page(20, is_newest_first=True, after=None)
    assert read_page(b"limit=100&order=asc&after=msg_%31&include%5B%5D=x") == Page(
        100, is_newest_first=False, after="msg_1"
    )
    for query, param in (
        (b"limit=0", "limit"), (b"limit=101", "limit"), (b"limit=-1", "limit"),
        (b"limit=", "limit"), (b"limit=1e1", "limit"), (b"limit=%D9%A1", "limit"),
        (b"limit=" + b"9" * 5000, "limit"), (b"order=up", "order"), (b"order=", "order"),
    ):  # fmt: skip
        with pytest.raises(BadBody) as refused:
            read_page(query)
        assert (refused.value.problem.status, refused.value.problem.param) == (400, param)


def test_any_query_is_read_or_refused() -> None:
    rng = random.Random(1)
    pieces = [
        b"limit=",
        b"order=",
        b"after=",
        b"&",
        b"%",
        b"%ff",
        b"\xff",
        b"asc",
        b"5",
        b";",
        b"=",
    ]
    num_read = 0
    for _ in range(5000):
        query = b"".join(rng.choices(pieces, k=rng.randrange(8)))
        with suppress(BadBody):
            assert 1 <= read_page(query).limit <= 100
            num_read += 1
    assert 1000 < num_read < 5000
