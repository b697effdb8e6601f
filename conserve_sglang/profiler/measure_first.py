"""Measures what the first handoff of a prefiller and a decoder takes beyond a later one.

Once for each start of the two: then they know each other. Before, each works alone for a while, so
that what a server's own first requests take is not in it; what its first handoff takes on the
decoder's side, whoever the prefiller, is. Both are timed by the client, from the request to the
first token, with prompts of one length, so that the prefill goes out in the difference.
"""

import asyncio
import statistics

from conserve_sglang.profiler.talk import Reply, Talker

NUM_TOKENS = 64
NUM_ALONE, NUM_LATER = 5, 15
_NUM_OUTPUT = 2  # a stream: with one token alone, its first event would be its last


async def first_handoff_s(prefiller: Talker, decoder: Talker) -> float | None:
    """Seconds, of a pair that was just started and that nobody else uses; never less than 0.

    None if an answer has no first token that can be seen. Raises `WorkerError`.
    """
    for _ in range(NUM_ALONE):
        await prefiller.generate(prefiller.prompt(NUM_TOKENS))
        await decoder.stream(decoder.prompt(NUM_TOKENS), _NUM_OUTPUT)
    first_s, *later_s = [await _first_token_s(prefiller, decoder) for _ in range(1 + NUM_LATER)]
    known_s = [seconds for seconds in later_s if seconds is not None]
    if first_s is None or not known_s:
        return None
    return max(0.0, first_s - statistics.median(known_s))


async def _first_token_s(prefiller: Talker, decoder: Talker) -> float | None:
    """Of one new prompt through both."""
    prompt, fields = prefiller.prompt(NUM_TOKENS), prefiller.paired()
    streamed: Reply
    _, streamed = await asyncio.gather(
        prefiller.generate(prompt, fields=fields),
        decoder.stream(prompt, _NUM_OUTPUT, fields=fields),
    )
    return streamed.ticks[0][0] - streamed.sent_at_s if streamed.ticks else None
