"""How much room a conversation is kept, and when its KV may be let go: constants, or what this very
conversation has shown so far. Nothing is learnt from one conversation for another."""

from typing import Protocol

from conserve_sglang.policy.api import History

MAX_PATIENCE_S = 300.0
GAPS_WAITED = 2.0
"""Of its longest gap so far, how often a conversation is waited for."""


class Retention(Protocol):
    """Tokens of room and seconds of patience, from a history and the setting for all."""

    def output_room(self, history: History | None, usual_tokens: int) -> int:
        """The room kept for a turn's answer while it runs."""
        ...

    def headroom(self, history: History | None, usual_tokens: int) -> int:
        """The room kept beside a conversation at rest for its next turn."""
        ...

    def patience_s(self, history: History | None, usual_s: float) -> float:
        """How long a conversation rests before its KV may be let go for one that waits."""
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

    def patience_s(self, history: History | None, usual_s: float) -> float:
        """What the settings say."""
        return usual_s


class ByHistory:
    """As long an answer and as long an append as the conversation has had are kept room for, and
    its KV outlasts twice the longest gap it has made; who comes back fast is not kept long."""

    __slots__ = ()

    def output_room(self, history: History | None, usual_tokens: int) -> int:
        """Its longest answer so far, and at least what the settings say."""
        return usual_tokens if history is None else max(usual_tokens, history.longest_output)

    def headroom(self, history: History | None, usual_tokens: int) -> int:
        """Its longest append and answer so far."""
        appended = 0 if history is None else history.longest_append
        return appended + self.output_room(history, usual_tokens)

    def patience_s(self, history: History | None, usual_s: float) -> float:
        """Twice its longest gap so far, at most `MAX_PATIENCE_S`; before the first, as set."""
        if history is None or not history.num_gaps:
            return usual_s
        return min(MAX_PATIENCE_S, GAPS_WAITED * history.longest_gap_s)


CONSTANT = Constant()
BY_HISTORY = ByHistory()
