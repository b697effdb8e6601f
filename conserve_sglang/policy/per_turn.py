"""Baselines that decide for every later turn anew where its append is prefilled."""

from dataclasses import dataclass

from conserve_sglang.core.worker import Role
from conserve_sglang.policy.api import Answer, ClusterView, Placement, PlacementReason, TurnView
from conserve_sglang.policy.parts import (
    backlog_s,
    fits,
    phase_one,
    prefill_rate,
    reason_of,
    roomiest,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoinFlipParams:
    """`error_rate`: the share of later turns that are sent to a prefiller wrongly. `seed`: of the
    coin."""

    error_rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.error_rate <= 1:
            raise ValueError("error_rate must lie between 0 and 1")


class CoinFlip:
    """The per-turn prediction baseline as arXiv 2606.01839 plays it: a predictor that is wrong
    now and then, and nothing else.

    A wrong turn waits for the prefiller like any other prompt, its KV moves there and back, and
    it goes on where it was. With an error rate of 0 it is `conserve-blind`. The coin falls the
    same for the same turn, so the policy is a pure function.
    """

    __slots__ = ("_error_rate", "_seed")

    def __init__(self, params: CoinFlipParams) -> None:
        self._error_rate = params.error_rate
        self._seed = params.seed

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        pinned = turn.pinned_decoder
        if pinned is None or turn.phase_one_cause is not None:
            return phase_one(turn, cluster, reason_of(turn.phase_one_cause), keeps_kv=True)
        if _coin(turn.arrival_number, self._seed) >= self._error_rate:
            return Placement(pinned, None, PlacementReason.PINNED, True)
        return _there_and_back(turn, cluster)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoLikeParams:
    """`max_local_tokens` and `max_local_ratio`: a turn is prefilled on its decoder if it has fewer
    new tokens, and a smaller share of the prompt is new. `max_prefill_queue`: as many prompts of
    its length before a prefiller, and a turn is prefilled on its decoder anyway; 0: never."""

    max_local_tokens: int = 2048
    max_local_ratio: float = 0.7
    max_prefill_queue: int = 0

    def __post_init__(self) -> None:
        if self.max_local_tokens < 1:
            raise ValueError("max_local_tokens must be at least 1")
        if not 0 < self.max_local_ratio <= 1:
            raise ValueError("max_local_ratio must be above 0 and at most 1")
        if self.max_prefill_queue < 0:
            raise ValueError("max_prefill_queue must not be negative")


class DynamoLike:
    """Conditional disaggregation by thresholds, as NVIDIA Dynamo's: the effective input (what is
    not cached) and its share of the prompt, for each turn; with session affinity.

    `max_prefill_queue` is the other bound its older disaggregation router has.
    """

    __slots__ = ("_params",)

    def __init__(self, params: DynamoLikeParams) -> None:
        self._params = params

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        params, pinned = self._params, turn.pinned_decoder
        is_short = turn.new_tokens < params.max_local_tokens
        is_small = turn.new_tokens < params.max_local_ratio * turn.input_tokens
        if pinned is not None and turn.phase_one_cause is None and is_short and is_small:
            return Placement(
                pinned, None, PlacementReason.PINNED, True, params.max_local_tokens - 1
            )
        reason = reason_of(turn.phase_one_cause)
        if turn.phase_one_cause is None and pinned is not None:
            reason = PlacementReason.LARGE_APPEND
        answer = phase_one(turn, cluster, reason, keeps_kv=True)
        if params.max_prefill_queue and self._is_full(turn, cluster):
            return _here(turn, cluster) or answer
        return answer

    def _is_full(self, turn: TurnView, cluster: ClusterView) -> bool:
        prefiller = cluster.least_backlog_prefiller()
        before = cluster.waiting_tokens()
        if prefiller is not None:
            before += cluster.pending_tokens(prefiller)
        return before >= self._params.max_prefill_queue * turn.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AmpdLikeParams:
    """`tbt_target_s`: what a stall spread over the expected answer must keep to on the decoder.
    `move_s_per_token`: KV on its way, each way (the A40's link, arXiv 2606.01839's logs).
    `usual_output_tokens`: an answer's length before its conversation has given any.
    """

    tbt_target_s: float = 0.05
    move_s_per_token: float = 1e-6
    usual_output_tokens: int = 256

    def __post_init__(self) -> None:
        if self.tbt_target_s <= 0 or self.move_s_per_token < 0 or self.usual_output_tokens < 1:
            raise ValueError("targets and lengths must be positive")


class AmpdLike:
    """Each append where it is expected to be prefilled sooner, from queues and observed rates, if
    the decoder's answers can bear the stall: our reading of AMPD (arXiv 2602.14516), which decides
    where a later round's prefill runs from real-time load and service objectives.

    How long an answer will be is predicted: as this conversation's answers were so far in the
    mean. The error of that is measured beside each result. KV moves to the prefiller and back.
    """

    __slots__ = ("_params",)

    def __init__(self, params: AmpdLikeParams) -> None:
        self._params = params

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        pinned, prefiller = turn.pinned_decoder, cluster.least_backlog_prefiller()
        if pinned is None or turn.phase_one_cause is not None:
            return phase_one(turn, cluster, reason_of(turn.phase_one_cause), keeps_kv=True)
        stays = Placement(pinned, None, PlacementReason.PINNED, True)
        if prefiller is None or cluster.prefill_s_per_token(prefiller) is None:
            return stays
        rate = prefill_rate(cluster, prefiller, None)
        stall_s = turn.new_tokens * prefill_rate(cluster, pinned, prefiller)
        here_s = backlog_s(cluster, pinned) + stall_s
        moved = turn.resident_tokens + turn.input_tokens
        before = cluster.pending_tokens(prefiller) + cluster.waiting_tokens() + turn.new_tokens
        there_s = before * rate + moved * self._params.move_s_per_token
        if there_s < here_s or not self._can_bear(turn, cluster, stall_s):
            return _there_and_back(turn, cluster)
        return stays

    def _can_bear(self, turn: TurnView, cluster: ClusterView, stall_s: float) -> bool:
        assert turn.pinned_decoder is not None
        pace = cluster.pace(turn.pinned_decoder)
        if pace is None:
            return True
        expected = turn.history.mean_output_tokens or self._params.usual_output_tokens
        return pace.tbt_s + stall_s / expected <= self._params.tbt_target_s


def _there_and_back(turn: TurnView, cluster: ClusterView) -> Answer:
    """On a prefiller, to which the conversation's KV is moved first if it comes back after."""
    answer = phase_one(turn, cluster, PlacementReason.OFFLOADED, keeps_kv=True)
    if isinstance(answer, Placement):
        answer.fetches_kv = answer.decoder == turn.pinned_decoder
    return answer


def _here(turn: TurnView, cluster: ClusterView) -> Placement | None:
    """Prefilled where it is decoded: on the pin, else where there is most room; None without."""
    pinned = turn.pinned_decoder
    if pinned is not None and fits(turn, cluster, pinned):
        return Placement(pinned, None, PlacementReason.SPILLED, True)
    found = roomiest(turn, cluster, Role.DECODE)
    if isinstance(found, str):
        return Placement(found, None, PlacementReason.SPILLED, True)
    return None


def _coin(number: int, seed: int) -> float:
    """Uniform in [0, 1) for each number: the mixing function of SplitMix64 (Steele, Lea, Flood,
    2014)."""
    mask = 2**64 - 1
    z = ((number + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) / 2**64
