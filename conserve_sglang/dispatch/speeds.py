"""How fast a worker was observed to be lately: its prefills, and the tokens of its answers.

Times are taken outside the worker, between sending a turn and hearing of it, so they hold what a
turn waits for inside. A turn whose whole answer came at once (one that is not streamed) tells
nothing.
"""

from conserve_sglang.policy.api import Pace

LONG_PROMPT_TOKENS = 1024
"""Shorter prompts cost a floor, whatever their length, and say nothing of a rate."""

_LEAST_COUNT = 16
_WEIGHT = 1 / _LEAST_COUNT  # of the newest observation in the mean
_LEAST_TBT_S = 1e-4  # tokens that come faster were not streamed


class Speeds:
    """Moving means of one worker; a plain mean until there are enough observations."""

    __slots__ = (
        "_num_answers",
        "_num_prefills",
        "_num_running",
        "_prefill_until_s",
        "_tbt_s",
        "prefill_s_per_token",
    )

    def __init__(self) -> None:
        self.prefill_s_per_token: float | None = None
        self._tbt_s = self._num_running = 0.0
        self._num_prefills = 0
        self._num_answers = 0
        self._prefill_until_s = 0.0

    def prefilled(self, sent_at_s: float, now: float) -> float:
        """A prompt sent at `sent_at_s` was prefilled; the seconds it took by itself, since one
        prompt is prefilled after the other."""
        since_s = self._prefill_until_s
        self._prefill_until_s = now
        return max(0.0, now - (sent_at_s if sent_at_s > since_s else since_s))

    def note_prefill(self, tokens: int, seconds: float) -> None:
        """A prefill of `tokens` took `seconds`."""
        if tokens < LONG_PROMPT_TOKENS or seconds <= 0:
            return
        self._num_prefills += 1
        rate, before = seconds / tokens, self.prefill_s_per_token or 0.0
        self.prefill_s_per_token = before + (rate - before) * _weight(self._num_prefills)

    def note_answer(self, tbt_s: float, num_running: int) -> None:
        """An answer's tokens came every `tbt_s` while the worker had so many turns."""
        self._num_answers += 1
        weight = _weight(self._num_answers)
        self._tbt_s += (tbt_s - self._tbt_s) * weight
        self._num_running += (num_running - self._num_running) * weight

    @property
    def pace(self) -> Pace | None:
        """The mean time between tokens, and the mean number of turns; None before any answer."""
        return Pace(self._tbt_s, self._num_running) if self._num_answers else None


def tbt_of_answer(first_token_at_s: float, now: float, output_tokens: int) -> float | None:
    """The mean time between an answer's tokens; None when it has none or was not streamed."""
    if output_tokens < 2:
        return None
    tbt_s = (now - first_token_at_s) / (output_tokens - 1)
    return tbt_s if tbt_s >= _LEAST_TBT_S else None


def _weight(count: int) -> float:
    return 1 / count if count < _LEAST_COUNT else _WEIGHT
