"""What a fake worker says, in the words of SGLang's endpoints."""

from typing import Any

from tests.fakes.prompt import BadPrompt

CHAT = {"id": "chatcmpl-fake", "created": 1, "model": "tiny"}
CHUNK = {**CHAT, "object": "chat.completion.chunk"}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _params(body: dict[str, Any]) -> dict[str, Any]:
    params = body.get("sampling_params")
    return params if isinstance(params, dict) else {}


def num_choices(body: dict[str, Any]) -> int:
    """How many answers are asked for. Raises `BadPrompt`."""
    n = _params(body).get("n") if "sampling_params" in body else body.get("n")
    if type(n or 1) is not int:
        raise BadPrompt("n is no number")
    return n or 1


class Saying:
    """The answer of every turn: its text, what was thought before it, and calls of tools.

    Every choice is the same, and as long as it is, whatever is asked for; who asks for one token
    gets one.
    """

    def __init__(self) -> None:
        self.answer = "the answer"
        self.reasoning = ""
        self.tool_calls: list[tuple[str, str]] = []  # name and arguments
        self.finish_reason = "stop"
        self.matched_stop: str | int | None = 151645

    def said(self, body: dict[str, Any]) -> str:
        """The text of each choice."""
        asked = body.get("max_tokens"), _params(body).get("max_new_tokens")
        return self.answer[:1] if 1 in asked else self.answer

    def usage(self, body: dict[str, Any], num_prompt: int, cached: int) -> dict[str, Any]:
        """Counts of all choices; the prompt counts once."""
        num_said = len(self.said(body)) * num_choices(body)
        return {
            "prompt_tokens": num_prompt,
            "total_tokens": num_prompt + num_said,
            "completion_tokens": num_said,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def whole(self, path: str, body: dict[str, Any], usage: dict[str, Any]) -> Any:
        """An answer in one piece."""
        said, num = self.said(body), num_choices(body)
        if path == "/generate":
            answers = [self.generated(said, usage, is_last=True) for _ in range(num)]
            return answers if num > 1 else answers[0]
        if path == "/v1/completions":
            one = {"text": said, "finish_reason": "stop"}
            choices = [{"index": n, **one} for n in range(num)]
            return {"object": "text_completion", "choices": choices, "usage": usage}
        message = {
            "role": "assistant",
            "content": said or None,
            "reasoning_content": self.reasoning or None,
            "tool_calls": [self.tool_call(n) for n in range(len(self.tool_calls))] or None,
        }
        choices = [
            {"index": n, "message": message, **self.ending(), **self.logprobs(body)}
            for n in range(num)
        ]
        return {**CHAT, "object": "chat.completion", "choices": choices, "usage": usage}

    def events(
        self, path: str, body: dict[str, Any], usage: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The events of a stream, and the pieces that its text comes in."""
        num = num_choices(body)
        words = self.said(body).split(" ")
        pieces = [word if n == 0 else " " + word for n, word in enumerate(words)]
        events: list[dict[str, Any]] = []
        for n, piece in enumerate(pieces):
            text, is_last = "".join(pieces[: n + 1]), n == len(pieces) - 1
            for index in range(num):
                if path == "/generate":
                    event = self.generated(text, usage, is_last=is_last)
                    events.append({**event, "index": index} if num > 1 else event)
                elif path == "/v1/completions":
                    events.append({"choices": [{"index": index, "text": piece}], "usage": None})
        options = body.get("stream_options") or {}
        if path == "/v1/chat/completions":
            so_far = usage if options.get("continuous_usage_stats") else None
            deltas = self.deltas(pieces)
            for n, delta in enumerate(deltas):
                ending = self.ending() if n == len(deltas) - 1 else {}
                for index in range(num):
                    choice = {"index": index, "delta": delta, "finish_reason": None}
                    choice |= self.logprobs(body) | ending
                    events.append({**CHUNK, "choices": [choice], "usage": so_far})
        if options.get("include_usage"):
            events.append({**CHUNK, "choices": [], "usage": usage})
        return events, pieces

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
