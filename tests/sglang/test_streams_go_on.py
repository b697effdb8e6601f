"""Streams of every endpoint lose their servers: each goes on exactly, or ends with an error event.

Chat streams under every fault are played in `test_faults.py`; here are the other endpoints, what
may not be continued, a second loss, and several turns that meet one fault at different moments.
"""

import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.sglang.cluster import Cluster
from tests.sglang.decoder import ids
from tests.sglang.routers import Router, running_router, worker_name
from tests.sglang.rule import answered_once
from tests.sglang.streams import (
    Stream,
    chat,
    completion,
    generate,
    message,
    wait_until,
)

pytestmark = pytest.mark.sglang

Asked = dict[str, tuple[str, dict[str, Any]]]
CITY = {"enum": ["Paris", "Rome", "Oslo"]}
CITIES = {
    "type": "object",
    "properties": {"cities": {"type": "array", "items": CITY, "minItems": 40, "maxItems": 40}},
    "required": ["cities"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "tour", "schema": CITIES}}
TOOL = {"type": "function", "function": {"name": "tour", "parameters": CITIES, "strict": True}}
CALL = {"type": "function", "function": {"name": "tour"}}
LENGTH = 700
LONG_PROMPT = 9_000
STREAMS: Asked = {
    "chat": chat("Tell me of the sea.", LENGTH),
    "schema": chat("Plan a tour.", 2 * LENGTH, response_format=SCHEMA, ignore_eos=False),
    "tool": chat("A tour!", 2 * LENGTH, tools=[TOOL], tool_choice=CALL, ignore_eos=False),
    "completion": completion("The sea", LENGTH),
    "message": message("Tell me of the hills.", LENGTH),
    "generate": generate(ids(300, 71), LENGTH),
}
NOT_CONTINUED: Asked = {
    "logprobs": chat("Tell me of the sea.", LENGTH, logprobs=True),
    "penalty": chat("Tell me of the sea.", LENGTH, frequency_penalty=0.5),
}
HEALTH = {"stall_s": 4.0, "stall_probe_timeout_s": 10.0}
CONTINUATIONS = "conserve_router_continuations_total"


@pytest.fixture
def router(cluster: Cluster) -> Iterator[Router]:
    settings: dict[str, Any] = {"health": HEALTH, "queue_timeout_s": 240.0, "state": None}
    with running_router(cluster, "go-on", {"name": "conserve"}, **settings) as router:
        yield router


def begin(router: Router, asked: Asked, tag: str) -> list[Stream]:
    return [Stream(router, path, body, f"{tag}-{name}") for name, (path, body) in asked.items()]


def begin_at(router: Router, decoder: str, other: str, asked: Asked, tag: str) -> list[Stream]:
    """All streams under way at one decoder."""
    admin(router, f"{other}/drain?timeout_s=60")
    streams = begin(router, asked, tag)
    wait_until(lambda: all(len(s.events) > 6 for s in streams), "no events")
    admin(router, f"{other}/undrain")
    assert {s.decoder for s in streams} == {worker_name(decoder)}
    return streams


def admin(router: Router, what: str) -> None:
    worker, _, verb = what.partition("/")
    url = f"{router.control_url}/admin/workers/{worker_name(worker)}/{verb}"
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=90) as answer:
        assert answer.status == 200


def moved_on(router: Router, streams: list[Stream], number: int) -> None:
    """Wait until all streams have gone on so often, and told more than they had."""
    had = [len(stream.events) for stream in streams]
    wait_until(lambda: router.loads()[CONTINUATIONS] >= number, "no stream went on")
    wait_until(
        lambda: all(len(s.events) > n + 1 for s, n in zip(streams, had, strict=True)), "no events"
    )


def test_streams_of_every_endpoint_outlive_a_frozen_and_then_a_killed_decoder(
    router: Router, record_property: Callable[[str, object], None]
) -> None:
    cluster = router.cluster
    expected = {s.name[6:]: s.said() for s in begin(router, STREAMS, "plain")}
    streams = begin_at(router, "d0", "d1", STREAMS, "hurt")
    broken = begin_at(router, "d0", "d1", NOT_CONTINUED, "broken")
    try:
        assert not any(stream.is_over for stream in streams), "too short to be interrupted"
        cluster.servers["d0"].signal(signal.SIGSTOP)
        with answered_once():
            assert {stream.error()["code"] for stream in broken} == {"answer_broken_off"}
        moved_on(router, streams, len(streams))
        starting = begin(router, {"long": generate(ids(LONG_PROMPT, 72), 24)}, "starting")
        time.sleep(0.2)
        over = [stream.name for stream in streams if stream.is_over]
        assert not over, "too short to be interrupted twice"
        cluster.kill("d1")
    finally:
        cluster.servers["d0"].signal(signal.SIGCONT)
    try:
        with answered_once():
            assert {s.name[5:]: s.said() for s in streams} == expected
        record_property("gaps_s", [round(s.longest_gap_s, 1) for s in streams])
        with answered_once():
            assert starting[0].said()["completion_tokens"] == 24
        assert router.loads()[CONTINUATIONS] == 2 * len(streams)
    finally:
        cluster.restart("d1")
