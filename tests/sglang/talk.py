"""Conversations as clients hold them, and the same ones with the stock server."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI

TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: what was said, how much was cached, and where the router says it ran."""

    output: Any
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    headers: dict[str, str]

    @property
    def decoder(self) -> str | None:
        """The decoder, by the router's name for it."""
        return self.headers.get("x-conserve-decoder")

    @property
    def prefiller(self) -> str | None:
        """The prefiller, if the turn was a phase 1."""
        return self.headers.get("x-conserve-prefiller")

    @property
    def reason(self) -> str | None:
        """Why it ran there."""
        return self.headers.get("x-conserve-reason")


def post(url: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
    """POST JSON (or raw bytes); status, decoded body and headers, errors included."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        url, data, {"content-type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return answer.status, json.loads(answer.read() or b"null"), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null"), error.headers


@dataclass(slots=True)
class TokenTalk:
    """A conversation over `/generate` with token ids: each turn extends the last one's."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    input_ids: list[int] = field(default_factory=list)

    def turn(self, append: list[int], max_new_tokens: int = 16) -> Reply:
        """Append ids, ask, and take the answer into the context."""
        self.input_ids += append
        sampling = {"temperature": 0, "max_new_tokens": max_new_tokens}
        body = {"input_ids": self.input_ids, "sampling_params": sampling}
        status, answer, headers = post(f"{self.url}/generate", body, self.headers)
        assert status == 200, answer
        self.input_ids += answer["output_ids"]
        meta = answer["meta_info"]
        return Reply(
            answer["output_ids"],
            meta["prompt_tokens"],
            meta["cached_tokens"],
            meta["completion_tokens"],
            {name.lower(): value for name, value in headers.items()},
        )


@dataclass(slots=True)
class ChatTalk:
    """A conversation over chat completions with the official client, streaming."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    messages: list[Any] = field(default_factory=list)

    def turn(self, text: str, **options: Any) -> Reply:
        """Say something, stream the answer, and take it into the context."""
        self.messages.append({"role": "user", "content": text})
        asked = {"model": "tiny-qwen3", "temperature": 0, "max_tokens": 16, **options}
        with OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0) as client:
            raw = client.chat.completions.with_raw_response.create(
                messages=self.messages,
                stream=True,
                stream_options={"include_usage": True},
                extra_headers=self.headers,
                timeout=TIMEOUT_S,
                **asked,
            )
            chunks = list(raw.parse())
        said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.messages.append({"role": "assistant", "content": said})
        usage = chunks[-1].usage
        details = usage.prompt_tokens_details
        return Reply(
            said,
            usage.prompt_tokens,
            (details.cached_tokens or 0) if details else 0,
            usage.completion_tokens,
            {name.lower(): value for name, value in raw.headers.items()},
        )
