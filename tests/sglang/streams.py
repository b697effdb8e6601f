"""Turns through the router while servers are hurt, each read by a thread of its own."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.sglang.cluster import MODEL_NAME
from tests.sglang.routers import Router

CHAT, COMPLETION, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
MESSAGES = "/v1/messages"
TIMEOUT_S = 240
_USAGE = {"stream_options": {"include_usage": True}}


def chat(text: str, count: int, **fields: Any) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": text}]
    return CHAT, {"messages": messages, **_USAGE, **_greedy(count), **fields}


def completion(text: str, count: int) -> tuple[str, dict[str, Any]]:
    return COMPLETION, {"prompt": text, **_USAGE, **_greedy(count)}


def message(text: str, count: int) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": text}]
    asked = {"model": MODEL_NAME, "messages": messages, "temperature": 0, "max_tokens": count}
    return MESSAGES, asked


def generate(prompt: list[int], count: int) -> tuple[str, dict[str, Any]]:
    sampling = {"temperature": 0, "max_new_tokens": count, "ignore_eos": True}
    return GENERATE, {"input_ids": prompt, "sampling_params": sampling}


def _greedy(count: int) -> dict[str, Any]:
    return {"model": MODEL_NAME, "temperature": 0, "max_tokens": count, "ignore_eos": True}


@dataclass
class Stream:
    """A streamed turn: its events as they come, and the time of each."""

    router: Router
    path: str
    body: dict[str, Any]
    name: str
    decoder: str | None = None
    reason: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    read_at_s: list[float] = field(default_factory=list)
    is_done: bool = False
    failure: Exception | None = None

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        host = self.router.url.removeprefix("http://")
        client = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
        try:
            sent = json.dumps({**self.body, "stream": True}).encode()
            headers = {"content-type": "application/json", "x-conversation-id": self.name}
            client.request("POST", self.path, sent, headers)
            answer = client.getresponse()
            self.reason = answer.getheader("x-conserve-reason")
            self.decoder = answer.getheader("x-conserve-decoder")
            for line in answer:
                self._take(line)
        except Exception as error:  # shown by whoever looks at the answer
            self.failure = error
        finally:
            client.close()

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"data: "):
            return
        self.read_at_s.append(time.monotonic())
        if line.strip() == b"data: [DONE]":
            self.is_done = True
        else:
            self.events.append(json.loads(line[6:]))

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    @property
    def longest_gap_s(self) -> float:
        pairs = zip(self.read_at_s, self.read_at_s[1:], strict=False)
        return max((b - a for a, b in pairs), default=0.0)

    def error(self) -> dict[str, Any]:
        """The error event the stream ended with, behind events of an answer."""
        self._thread.join(TIMEOUT_S)
        assert self.failure is None, self.failure
        assert len(self.events) > 1, self.events
        error: dict[str, Any] = self.events[-1]["error"]
        return error

    def said(self) -> dict[str, Any]:
        """What the answer comes to; fails unless it ended in order, with nothing twice."""
        self._thread.join(TIMEOUT_S)
        assert self.failure is None, (self.name, self.failure)
        assert self.events, (self.name, "no event")
        assert "error" not in self.events[-1], (self.name, self.events[-1])
        if self.path == MESSAGES:
            return _of_messages(self.events)
        assert self.is_done, (self.name, self.events[-1])
        return _of_native(self.events) if self.path == GENERATE else _of_openai(self.events)


def _of_native(events: list[dict[str, Any]]) -> dict[str, Any]:
    counts = [len(event["output_ids"]) for event in events]
    assert counts == sorted(set(counts)), "a step came twice"
    assert len({event["meta_info"]["id"] for event in events}) == 1
    last = events[-1]
    meta = last["meta_info"]
    names = ("finish_reason", "prompt_tokens", "completion_tokens")
    return {"text": last["text"], "ids": last["output_ids"], **{n: meta[n] for n in names}}


def _of_openai(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert len({(event["id"], event["created"]) for event in events}) == 1
    choices = [choice for event in events for choice in event["choices"]]
    deltas = [choice.get("delta") or choice for choice in choices]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls") or ()]
    usage = events[-1]["usage"]
    return {
        "text": "".join(delta.get("content") or delta.get("text") or "" for delta in deltas),
        "reasoning": "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "calls": "".join((call["name"] or "") + (call["arguments"] or "") for call in calls),
        "roles": sum(delta.get("role") == "assistant" for delta in deltas),
        "finish": [choice["finish_reason"] for choice in choices if choice["finish_reason"]],
        "usage": (usage["prompt_tokens"], usage["completion_tokens"]),
    }


def _of_messages(events: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    end = next(event for event in events if event["type"] == "message_delta")
    return {
        "text": "".join(delta["text"] for delta in deltas),
        "kinds": [kind for kind in kinds if kind not in {"content_block_delta", "ping"}],
        "stop": end["delta"]["stop_reason"],
        "output_tokens": end["usage"]["output_tokens"],
    }


def wait_until(is_so: Callable[[], bool], what: str, limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
