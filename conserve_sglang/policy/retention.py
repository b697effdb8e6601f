"""How much room a conversation is kept, and when its KV may be let go: constants, what this very
conversation has shown so far, or what it would cost to bring its KV back. Nothing is learnt from
one conversation for another."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from conserve_sglang.policy.api import History

SOON_S = 15.0
"""Room for the next turn is kept only for conversations that have always come back faster."""


class Retention(Protocol):
    """Tokens of room and seconds of patience, from a history and the setting for all."""

    def output_room(self, history: History | None, usual_tokens: int) -> int:
        """The room kept for a turn's answer while it runs."""
        ...

    def headroom(self, history: History | None, usual_tokens: int) -> int:
        """The room kept beside a conversation at rest for its next turn."""
        ...

    def overdue(self, history: History | None, rested_s: float) -> float:
        """Of those whose KV may be let go, the one for which this is largest goes first."""
        ...


@runtime_checkable
class PricedRetention(Retention, Protocol):
    """A retention by which some KV is let go sooner than other KV."""

    def patience_s_per_token(
        self, prefill_s_per_token: float, num_running: int, num_waiting: float
    ) -> float:
        """How long each token of KV is kept at rest although others wait for room, on a worker that
        prefills at that rate and decodes so many turns. `num_waiting`: turns that wait for room, by
        the number of workers that might have it."""
        ...


class Constant:
    """The settings as they are, and no room for the next turn before it comes."""

    __slots__ = ()

    def output_room(self, history: History | None, usual_tokens: int) -> int:
        """What the settings say."""
        return usual_tokens

    def headroom(self, history: History | None, usual_tokens: int) -> int:
        """None."""
        return 0

    def overdue(self, history: History | None, rested_s: float) -> float:
        """How long it has rested."""
        return rested_s


class ByHistory:
    """As long an answer and as long an append as the conversation has had are kept room for, and
    who has outstayed the gaps it makes most is let go first."""

    __slots__ = ()

    def output_room(self, history: History | None, usual_tokens: int) -> int:
        """Its longest answer so far, and at least what the settings say."""
        return usual_tokens if history is None else max(usual_tokens, history.longest_output)

    def headroom(self, history: History | None, usual_tokens: int) -> int:
        """Its longest append and answer so far; nothing for one that makes long gaps."""
        if history is None:
            return usual_tokens
        if history.longest_gap_s > SOON_S:
            return 0
        return history.longest_append + self.output_room(history, usual_tokens)

    def overdue(self, history: History | None, rested_s: float) -> float:
        """How long it has rested, measured by the mean of the gaps it has made; by `SOON_S` before
        the first."""
        mean_s = SOON_S
        if history is not None and history.num_gaps:
            mean_s = max(1.0, history.gaps_s / history.num_gaps)
        return rested_s / mean_s


@dataclass(frozen=True, slots=True)
class ByCost(Constant):
    """KV is kept for as long as bringing it back would hold others up, and what has rested longest
    by that measure is let go first.

    While KV rests, a turn that waits for its room pays a second each second. Once it is let go, it
    is prefilled again: that holds up its own conversation, each turn that its worker decodes, which
    count `stall_weight` times, and those who wait for room by their worker's share. When as much
    was paid as that costs, the KV goes. This is ski rental (Karlin, Manasse, Rudolph, Sleator,
    1988): without knowing when the next turn comes, at most twice the least has been paid.
    """

    stall_weight: float

    def patience_s_per_token(
        self, prefill_s_per_token: float, num_running: int, num_waiting: float
    ) -> float:
        """The seconds of a token's prefill, for each who is held up."""
        return prefill_s_per_token * (1 + self.stall_weight * num_running + num_waiting)


CONSTANT = Constant()
BY_HISTORY = ByHistory()
