"""Going on with an answer that another decoder began, in the process that speaks HTTP.

The request is the client's own, with a `Continuation` in place of its id:

    prompt     `_create_tokenized_object` appends the ids sent so far, all but the last
    contents   `generate_request` makes the steps so far again, then goes on with the scheduler's
    events     the OpenAI endpoints make events of them; those the client has are left out

So parsers of tools and reasoning, offsets and counts are where they were, because they went the
same way. A prefiller does the first alone.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from importlib import import_module
from typing import Any

from conserve_sglang.core.continuation import Continuation, Handoff
from conserve_sglang.core.turn_tag import with_tag_of
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.telling import Told, is_to_be_told, told, told_of, why_not_resumable

_CONTINUED = "conserve_continued"
_CONTEXT_TOKENS = 5  # SGLang's INIT_INCREMENTAL_DETOKENIZATION_OFFSET
_STEPS_AT_ONCE = 16
_CREATED = re.compile(r'"created":\d+')
_UNFINISHED = "\ufffd"

Contents = AsyncIterator[dict[str, Any]]


class Continued:
    """One request that goes on, and how its text has to be put together."""

    def __init__(self, continuation: Continuation) -> None:
        self.continuation = continuation
        self.has_events = False
        self.text: StepText | None = None

    def take_prompt(self, manager: Any, tokenized: Any) -> None:
        """Note how the prompt ends, which SGLang decodes the answer behind."""
        params = tokenized.sampling_params
        self.text = StepText(
            list(tokenized.input_ids[-_CONTEXT_TOKENS:]),
            lambda ids: str(
                manager.tokenizer.decode(
                    ids,
                    skip_special_tokens=params.skip_special_tokens,
                    spaces_between_special_tokens=params.spaces_between_special_tokens,
                )
            ),
            import_module("sglang.utils").find_printable_text,
        )


class StepText:
    """The text of an answer step by step, as SGLang's detokenizer process puts it together.

    Text that ends within a character waits for the rest of it; `DetokenizerManager` has the
    same rule, over the same ids.
    """

    def __init__(
        self,
        context: list[int],
        decode: Callable[[list[int]], str],
        printable: Callable[[str], str],
    ) -> None:
        self._ids = context
        self._decode = decode
        self._printable = printable
        self._surr = 0
        self._read = len(context)
        self._text = ""

    def after(self, step: tuple[int, ...]) -> str:
        """All text there is to be shown after one more step."""
        self._ids.extend(step)
        known = self._decode(self._ids[self._surr : self._read])
        new = self._decode(self._ids[self._surr :])[len(known) :]
        if not new or new.endswith(_UNFINISHED):
            return self._text + self._printable(new)
        self._text += new
        self._surr, self._read = self._read, len(self._ids)
        return self._text


def continued_of(obj: Any) -> Continued | None:
    """What a request goes on with; gives it an id of its own the first time."""
    known = obj.__dict__
    if _CONTINUED not in known:
        continuation = Continuation.from_rid(obj.rid)
        known[_CONTINUED] = None if continuation is None else Continued(continuation)
        if continuation is not None:
            obj.regenerate_rid()
    found: Continued | None = known[_CONTINUED]
    return found


def create_tokenized_object(
    inside: Inside, original: Any, manager: Any, obj: Any, *args: Any, **kwargs: Any
) -> Any:
    """Append the ids sent so far, all but the last, and say where the answer begins."""
    tokenized = original(manager, obj, *args, **kwargs)
    continued = continued_of(obj) if hasattr(obj, "rid") else None
    if continued is None:
        return tokenized
    token_ids = continued.continuation.token_ids
    why_not = why_not_resumable(manager, obj)
    if why_not is not None or not token_ids:
        raise ValueError(f"This answer cannot be continued: {why_not or 'it has no token yet'}.")
    continued.take_prompt(manager, tokenized)
    tokenized.input_ids.extend(token_ids[:-1])
    params = tokenized.sampling_params
    params.min_new_tokens = max(0, params.min_new_tokens - len(token_ids))
    handoff = Handoff(
        num_sent=len(token_ids), last_id=token_ids[-1], max_new_tokens=params.max_new_tokens
    )
    tokenized.routing_key = with_tag_of(handoff.to_routing_key(), tokenized.routing_key)
    return tokenized


def generate_request(
    inside: Inside, original: Any, manager: Any, obj: Any, *args: Any, **kwargs: Any
) -> Contents:
    """What the answer is after each step; one that goes on makes the steps so far again."""
    continued = continued_of(obj)
    contents: Contents = original(manager, obj, *args, **kwargs)
    if continued is not None and inside.settings.local_prefill:
        contents = _going_on(contents, continued)
    if told_of(obj) is None:
        return contents
    return _noted(contents, obj)


def generate_events(
    inside: Inside, original: Any, serving: Any, obj: Any, request: Any, raw_request: Any
) -> AsyncIterator[str]:
    """The events of an OpenAI stream: ids told where asked for, what the client has left out."""
    events: AsyncIterator[str] = original(serving, obj, request, raw_request)
    continued = continued_of(obj)
    if not inside.settings.local_prefill:
        return events
    num_sent = 0
    if continued is not None:
        continued.has_events = True
        num_sent = len(continued.continuation.token_ids)
        events = _left_out(events, continued.continuation)
    if is_to_be_told(serving.tokenizer_manager, obj, raw_request):
        events = told(events, obj, Told(num_sent))
    return events


async def _noted(contents: Contents, obj: Any) -> Contents:
    async with aclosing(contents) as stream:  # type: ignore[type-var]  # a generator
        async for content in stream:
            told_of(obj).note(content)  # type: ignore[union-attr]  # looked at before
            yield content


async def _going_on(contents: Contents, continued: Continued) -> Contents:
    continuation = continued.continuation
    num_sent = len(continuation.token_ids)
    shown: str | None = None
    async with aclosing(contents) as stream:  # type: ignore[type-var]  # a generator
        async for content in stream:
            meta = content["meta_info"]
            meta["id"] = continuation.answer_id
            if (meta.get("finish_reason") or {}).get("type") == "abort":
                yield content
                continue
            num_tokens = len(content["output_ids"])
            if shown is None:
                for number, step in enumerate(_steps_again(continued, content)):
                    shown = step["text"]
                    if number % _STEPS_AT_ONCE == _STEPS_AT_ONCE - 1:
                        await asyncio.sleep(0)
                    if continued.has_events and len(step["output_ids"]) < num_tokens:
                        yield step
            shown = _joined(shown or "", content)
            is_new = num_tokens > num_sent or meta.get("finish_reason")
            if is_new or continued.has_events:
                yield content


def _steps_again(continued: Continued, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps so far, as contents.

    The scheduler's first content stands for the last of them, unless it has further tokens: a
    busy server puts several steps into one.
    """
    assert continued.text is not None
    token_ids: list[int] = []
    for step in continued.continuation.steps:
        token_ids = token_ids + list(step)
        meta = {**content["meta_info"], "finish_reason": None, "completion_tokens": len(token_ids)}
        text = continued.text.after(step)
        yield {**content, "text": text, "output_ids": token_ids, "meta_info": meta}


def _joined(shown: str, content: dict[str, Any]) -> str:
    """See to it that text only grows: decoded at once, the end of it may still be withheld."""
    text = content["text"]
    if not text.startswith(shown):
        if not shown.startswith(text):
            raise ValueError("This answer cannot be continued: its text came out differently.")
        content["text"] = shown
    return str(content["text"])


async def _left_out(events: AsyncIterator[str], continuation: Continuation) -> AsyncIterator[str]:
    """The events behind those the client has, with the answer's own time."""
    created = f'"created":{continuation.created}'
    num_left = continuation.num_events
    async with aclosing(events) as stream:  # type: ignore[type-var]  # a generator
        async for event in stream:
            is_own = event.startswith(('data: {"error"', "data: [DONE]"))
            if num_left and not is_own:
                num_left -= 1
                continue
            yield event if is_own else _CREATED.sub(created, event, count=1)
