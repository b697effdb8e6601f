"""Telling the router the token ids of a stream, so that another decoder can go on with it.

`generate_request` yields what the answer is after each step; the OpenAI endpoints turn a step into
any number of events. The first notes the ids of each step on the request, the second writes them
at the end of the step's first event. See `core/continuation.py` for how it looks.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from conserve_sglang.core.continuation import TELL_HEADER, told_step

_TOLD = "conserve_told"
_END = "data: [DONE]"


class Told:
    """The steps of one answer: how many ids were noted, and those no event has told yet."""

    __slots__ = ("num_noted", "untold")

    def __init__(self, num_noted: int = 0) -> None:
        self.num_noted = num_noted
        self.untold: list[str] = []

    def note(self, content: dict[str, Any]) -> None:
        """Take in what the answer is after one step; its ids are all of the answer's."""
        token_ids = content["output_ids"]
        if len(token_ids) > self.num_noted:
            self.untold.append(told_step(token_ids[self.num_noted :]))
            self.num_noted = len(token_ids)

    def end(self, event: str) -> str:
        """An event with the line that tells what was noted since the last one."""
        told = ";".join(self.untold)
        self.untold.clear()
        return f"{event[:-1]}:={told}\n\n"


def told_of(obj: Any) -> Told | None:
    """The steps of a request whose ids are told."""
    told: Told | None = obj.__dict__.get(_TOLD)
    return told


def is_to_be_told(manager: Any, obj: Any, raw_request: Any) -> bool:
    """Whether a stream's ids are asked for, and would be of use."""
    return (
        raw_request is not None
        and TELL_HEADER in raw_request.headers
        and why_not_resumable(manager, obj) is None
    )


def why_not_resumable(manager: Any, obj: Any) -> str | None:
    """What of a request could not be continued exactly; None if all of it could."""
    params = obj.sampling_params or {}
    if not isinstance(params, dict) or isinstance(obj.text, list):
        return "several prompts"
    asked = {**(manager.preferred_sampling_params or {}), **params}

    def has(name: str) -> bool:
        return bool(getattr(obj, name, None))

    reasons = (
        ("a server with --incremental-streaming-output", manager.incremental_streaming_output),
        ("a server without a tokenizer", manager.tokenizer is None),
        ("a prompt of embeddings", has("input_embeds")),
        ("images, audio or video", has("image_data") or has("audio_data") or has("video_data")),
        ("a session with its own history", has("session_params")),
        ("several choices", (asked.get("n") or 1) > 1 or (asked.get("beam_width") or 1) > 1),
        ("a frequency penalty", asked.get("frequency_penalty")),
        ("a presence penalty", asked.get("presence_penalty")),
        ("a repetition penalty", (asked.get("repetition_penalty") or 1.0) != 1.0),
        ("a logit processor", has("custom_logit_processor")),
        ("token probabilities", has("return_logprob")),
        ("hidden states", has("return_hidden_states")),
        ("routed experts", has("return_routed_experts")),
    )
    return next((reason for reason, is_so in reasons if is_so), None)


async def told(events: AsyncIterator[str], obj: Any, steps: Told) -> AsyncIterator[str]:
    """The events of a stream, each with the line that tells its ids."""
    setattr(obj, _TOLD, steps)
    async with aclosing(events) as stream:  # type: ignore[type-var]  # a generator
        async for event in stream:
            yield event if event.startswith(_END) else steps.end(event)
