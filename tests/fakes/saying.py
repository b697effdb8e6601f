"""What a fake worker says, in the words of SGLang's endpoints."""

from typing import Any

CHAT = {"id": "chatcmpl-fake", "created": 1, "model": "tiny"}
CHUNK = {**CHAT, "object": "chat.completion.chunk"}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Saying:
    """The answer of every turn: its text, what was thought before it, and calls of tools."""

    def __init__(self) -> None:
        self.answer = "the answer"
        self.reasoning = ""
        self.tool_calls: list[tuple[str, str]] = []  # name and arguments
        self.finish_reason = "stop"
        self.matched_stop: str | int | None = 151645

    def generated(self, text: str, usage: dict[str, Any], *, is_last: bool) -> dict[str, Any]:
        return {
            "text": text,
            "output_ids": list(text.encode()),
            "meta_info": {
                "id": "x",
                "finish_reason": {"type": "stop"} if is_last else None,
                "prompt_tokens": usage["prompt_tokens"],
                "completion_tokens": len(text),
                "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            },
        }

    def deltas(self, pieces: list[str]) -> list[dict[str, Any]]:
        """A message in pieces: what was thought, what is said, then call after call."""
        deltas: list[dict[str, Any]] = []
        if self.reasoning:
            deltas.append({"role": "assistant", "reasoning_content": self.reasoning})
        if self.answer:
            deltas += [{"role": "assistant", "content": piece} for piece in pieces]
        for n, (_, arguments) in enumerate(self.tool_calls):
            call = self.tool_call(n)
            named = {**call["function"], "arguments": ""}
            deltas.append({"tool_calls": [{**call, "function": named}]})
            middle = len(arguments) // 2
            for part in (arguments[:middle], arguments[middle:]):
                function = {"name": None, "arguments": part}
                more = {"index": n, "id": None, "type": "function", "function": function}
                deltas.append({"tool_calls": [more]})
        return deltas or [{"role": "assistant", "content": ""}]

    def tool_call(self, n: int) -> dict[str, Any]:
        name, arguments = self.tool_calls[n]
        function = {"name": name, "arguments": arguments}
        return {"id": f"call_{n}", "index": n, "type": "function", "function": function}

    def ending(self) -> dict[str, Any]:
        reason = self.finish_reason
        if self.tool_calls and reason == "stop":
            reason = "tool_calls"
        return {"finish_reason": reason, "matched_stop": self.matched_stop}

    def logprobs(self, body: dict[str, Any]) -> dict[str, Any]:
        if not body.get("logprobs"):
            return {}
        token = {"token": "t", "logprob": -0.5, "bytes": [116]}
        return {"logprobs": {"content": [{**token, "top_logprobs": [token]}]}}
