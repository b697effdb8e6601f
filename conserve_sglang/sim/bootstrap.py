"""The bootstrap: before their first handoff, a prefiller and a decoder get to know each other.

As SGLang 0.5.23 does it (`disaggregation/common/conn.py`): the decoder asks the prefiller's
bootstrap server for its layout and ranks, registers its KV buffers there, and connections are
opened. It keeps that until either of the two is gone. A prompt is prefilled only when its two
workers know each other, so whoever comes meanwhile waits for the rest of it.
"""

from conserve_sglang.core.ids import WorkerId


class Bootstrap:
    """Which pairs know each other, or from when on."""

    __slots__ = ("_known_at_s",)

    def __init__(self) -> None:
        self._known_at_s: dict[tuple[WorkerId, WorkerId], float] = {}

    def wait_s(
        self, prefiller: WorkerId, decoder: WorkerId, first_handoff_s: float, now: float
    ) -> float:
        """How long a turn waits for its pair; if it is the pair's first, all of
        `first_handoff_s`."""
        pair = (prefiller, decoder)
        known_at_s = self._known_at_s.get(pair)
        if known_at_s is None:
            known_at_s = self._known_at_s[pair] = now + first_handoff_s
        return max(0.0, known_at_s - now)

    def forget(self, worker: WorkerId) -> None:
        """It starts another life, in which nobody knows it yet."""
        self._known_at_s = {
            pair: at_s for pair, at_s in self._known_at_s.items() if worker not in pair
        }
