"""Turns that ask for several choices (`n`): what is kept of the request, and how it is counted.

Apart from `priming`, which sends them: this is what a turn carries.
"""

import msgspec

from conserve_sglang.router.payload import WITH_USAGE, Endpoint, Fields, Payload
from conserve_sglang.workers.unreadable import UNREADABLE
from conserve_sglang.workers.usage import Usage

# What makes an answer and no prompt. All else stays: a chat template may render response formats
# and the choice of tools (Kimi K3's does, SGLang 0.5.23), and adapters and salts part KV.
_ANSWER_ONLY = frozenset(
    {
        "best_of",
        "echo",
        "logprob_start_len",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "min_tokens",
        "n",
        "return_hidden_states",
        "return_logprob",
        "stream",
        "stream_options",
        "token_ids_logprob",
        "top_logprobs",
        "top_logprobs_num",
    }
)
_SAMPLING_ONLY = frozenset({"max_new_tokens", "min_new_tokens", "n"})
_ONE = msgspec.Raw(b"1")

_fields = msgspec.json.Decoder(Fields)


class Choices:
    """How many choices a turn asks for, more than one, and the fields of its request.

    `cached_tokens`: how much of the prompt its prefiller had, once that moved the KV; to the
    decoder all of it is cached then.
    """

    __slots__ = ("_fields", "cached_tokens", "num")

    def __init__(self, num: int, fields: Fields) -> None:
        self.num = num
        self._fields = fields
        self.cached_tokens: int | None = None

    def forget_request(self) -> None:
        """The answer has begun, so there is no further attempt: let go of the body."""
        self._fields = {}

    def priming(self, payload: Payload) -> Payload:
        """A request with the same prompt for one choice of one token, in one piece."""
        kept = {name: raw for name, raw in self._fields.items() if name not in _ANSWER_ONLY}
        if payload.endpoint is Endpoint.GENERATE:
            params = _fields.decode(self._fields["sampling_params"])
            kept_params = {name: raw for name, raw in params.items() if name not in _SAMPLING_ONLY}
            kept_params["max_new_tokens"] = _ONE
            kept["sampling_params"] = msgspec.Raw(msgspec.json.encode(kept_params))
        else:
            kept["max_tokens"] = _ONE
        primed = Payload(payload.endpoint, {}, is_stream=False)
        primed.inserts = payload.inserts.removesuffix(WITH_USAGE)
        primed.rest = msgspec.json.encode(kept)[1:]
        return primed

    def counted(self, usage: Usage, answer: bytes | None, *, is_stream: bool) -> Usage:
        """What all choices took. `answer` is SGLang's own, which counts each by itself."""
        output_tokens, cached_tokens = usage.output_tokens, self.cached_tokens
        if answer is not None:
            output_tokens = _output_tokens(answer, is_stream) or output_tokens
        if cached_tokens is None:
            cached_tokens = usage.cached_tokens
        return Usage(usage.prompt_tokens, output_tokens, cached_tokens)

    def one_of(self, usage: Usage) -> Usage:
        """What one choice took, of as many tokens as the others: their conversation goes on with
        one of them."""
        share = -(-usage.output_tokens // self.num)
        return Usage(usage.prompt_tokens, share, usage.cached_tokens)


class _Meta(msgspec.Struct):
    completion_tokens: int = 0


class _Generated(msgspec.Struct):
    index: int = 0
    meta_info: _Meta = msgspec.field(default_factory=_Meta)


_event = msgspec.json.Decoder(_Generated)
_whole = msgspec.json.Decoder(list[_Generated])


def _output_tokens(answer: bytes, is_stream: bool) -> int:
    """Of all choices of a `/generate` answer; 0 if it cannot be told."""
    try:
        if not is_stream:
            return sum(choice.meta_info.completion_tokens for choice in _whole.decode(answer))
        counts: dict[int, int] = {}
        for event in answer.split(b"\n\n"):
            if event.startswith(b"data: {"):
                choice = _event.decode(event[6:])
                counts[choice.index] = choice.meta_info.completion_tokens
        return sum(counts.values())
    except UNREADABLE:
        return 0
