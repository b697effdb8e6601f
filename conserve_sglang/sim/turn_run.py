"""A turn while the simulator plays it."""

from conserve_sglang.core.ids import ConversationId, TurnId
from conserve_sglang.core.local_turn import Refusal
from conserve_sglang.dispatch import SendTurn
from conserve_sglang.sim.decode_log import GapRun
from conserve_sglang.sim.perf_model import Cost, PerfModel
from conserve_sglang.sim.records import TurnRecord
from conserve_sglang.workload import TurnPlan

NO_COST = Cost(0.0, 0.0)


class TurnRun:
    """One open turn. What stands below `command` belongs to the present attempt.

    `cached_tokens`: of the prompt, what the decoder had. `position`: up to where the prompt is
    prefilled, from `prefill_from`, on the prefiller or else on the decoder itself. `held_tokens`:
    its room on the decoder. `prefill_cost`: of all its prefill, by itself. `prefill_at_s`: when
    its prefill began. `token_at_s`: the latest token's time when it last joined the batch.
    `prefill_j` and `decode_j` are of all attempts; `request_j`, `token_j` and `numbered_j` the
    batch's sums when it joined. `told_tokens` of its answer its client had before a worker was
    lost, from `told_first_at_s` to `told_last_at_s`; they are part of the prompt since.
    `is_at_work`: its workers have it. `is_prefilled_apart`: one worker prefills and another one
    decodes. `heir` goes on with the turn when this attempt is lost.
    """

    __slots__ = (
        "arrived_at_s",
        "cached_tokens",
        "command",
        "conversation_id",
        "decode_j",
        "first_token_at_s",
        "gaps",
        "generated_tokens",
        "has_moved",
        "has_room",
        "heir",
        "held_tokens",
        "input_tokens",
        "is_at_work",
        "is_prefilled",
        "is_prefilled_apart",
        "joined_at_step",
        "numbered_j",
        "output_tokens",
        "position",
        "prefill_at_s",
        "prefill_cost",
        "prefill_from",
        "prefill_j",
        "request_j",
        "shared_tokens",
        "token_at_s",
        "token_j",
        "told_first_at_s",
        "told_last_at_s",
        "told_tokens",
        "turn_id",
        "wants_gaps",
    )

    command: SendTurn
    heir: "TurnRun | None"

    def __init__(
        self, turn_id: TurnId, conversation_id: ConversationId, plan: TurnPlan, arrived_at_s: float
    ) -> None:
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.input_tokens = plan.input_tokens
        self.output_tokens = plan.output_tokens
        self.shared_tokens = plan.shared_tokens
        self.arrived_at_s = arrived_at_s
        self.is_at_work = False
        self.heir = None
        self.told_tokens = 0
        self.told_first_at_s = self.told_last_at_s = 0.0
        self.wants_gaps = False
        self.prefill_j = 0.0
        self.decode_j = 0.0
        self.prefill_cost = NO_COST
        self.request_j = self.token_j = self.numbered_j = 0.0
        self.gaps: tuple[GapRun, ...] = ()

    def begin(self, command: SendTurn) -> None:
        """Start an attempt."""
        self.command = command
        self.is_at_work = True
        self.is_prefilled_apart = command.prefiller is not None
        self.has_moved = not self.is_prefilled_apart
        self.cached_tokens = 0
        self.prefill_from = 0
        self.position = 0
        self.is_prefilled = False
        self.has_room = False
        self.held_tokens = 0
        self.generated_tokens = 0
        self.joined_at_step = 0
        self.prefill_at_s = 0.0
        self.first_token_at_s = 0.0
        self.token_at_s = 0.0

    def begin_answer(self, now: float) -> None:
        """The attempt's first token is out: the turn's first one, or the next after a loss."""
        self.generated_tokens = 1
        self.token_at_s = now
        if self.told_tokens == 0:
            self.first_token_at_s = now
            return
        self.first_token_at_s = self.told_first_at_s
        if self.wants_gaps:
            self.gaps += (GapRun(now - self.told_last_at_s, 0.0, 1),)

    def again(self) -> "TurnRun":
        """What is left of the turn, now that this attempt's worker is lost: its prompt and the
        tokens its client has are the new prompt. Joules booked on this one are its heir's."""
        heir = TurnRun.__new__(TurnRun)
        heir.turn_id, heir.conversation_id = self.turn_id, self.conversation_id
        heir.input_tokens = self.input_tokens + self.generated_tokens
        heir.output_tokens = self.output_tokens - self.generated_tokens
        heir.shared_tokens, heir.arrived_at_s = self.shared_tokens, self.arrived_at_s
        heir.wants_gaps, heir.gaps = self.wants_gaps, self.gaps
        heir.prefill_j, heir.decode_j = self.prefill_j, self.decode_j
        heir.prefill_cost = NO_COST
        heir.request_j = heir.token_j = heir.numbered_j = 0.0
        heir.told_tokens = self.told_tokens + self.generated_tokens
        is_new = self.generated_tokens > 0
        heir.told_first_at_s = self.first_token_at_s if is_new else self.told_first_at_s
        heir.told_last_at_s = self.token_at_s if is_new else self.told_last_at_s
        heir.is_at_work, heir.heir = False, None
        self.heir = heir
        return heir

    def book_prefill(self, joules: float) -> None:
        """Joules of its prefill; of what outlived it, its heir's."""
        if self.heir is None:
            self.prefill_j += joules
        else:
            self.heir.book_prefill(joules)

    def record(self, turn_index: int, now: float) -> TurnRecord:
        """What is written down of it; its last token came now."""
        command = self.command
        return TurnRecord(
            turn_index,
            self.arrived_at_s,
            self.first_token_at_s,
            now,
            command.reason,
            command.prefiller,
            command.decoder,
            self.input_tokens - self.told_tokens,
            self.output_tokens + self.told_tokens,
            self.cached_tokens,
            command.attempt,
            self.prefill_at_s,
            self.prefill_j,
            self.decode_j,
        )

    @property
    def whole_tokens(self) -> int:
        """The context at the turn's end."""
        return self.input_tokens + self.output_tokens

    def room_for_more(self, lump_tokens: int) -> int:
        """Room to hold on the decoder: the context so far and at most a lump of further output."""
        left = self.output_tokens - self.generated_tokens
        more = left if left < lump_tokens else lump_tokens
        return self.input_tokens + self.generated_tokens + more

    def prefill_after(self, resident_tokens: int, perf: PerfModel) -> None:
        """Prefill what is not among the conversation's resident tokens: one token at least."""
        usable = min(self.shared_tokens, resident_tokens)
        self.prefill_from = self.position = min(usable, self.input_tokens - 1)
        self.prefill_cost = perf.prefill_cost(self.prefill_from, self.input_tokens)

    def prefill_after_change(self, perf: PerfModel) -> None:
        """The worker goes by other unit costs from now on."""
        self.prefill_cost = perf.prefill_cost(self.prefill_from, self.input_tokens)

    def refusal(self, resident_tokens: int) -> Refusal | None:
        """The refusal due if this is a local turn and its limits are not kept, as the plugin
        decides it."""
        limits = self.command.limits
        if limits is None:
            return None
        return limits.refusal(
            prompt_tokens=self.input_tokens,
            cached_tokens=min(self.shared_tokens, resident_tokens),
        )

    def chunk_cost(self, perf: PerfModel, until: int) -> float:
        """Seconds for the prompt's tokens from `position` to `until`, by itself: a part of the
        whole prefill's cost, so that chunks add up to it."""
        begin, end = self.prefill_from, self.input_tokens
        whole = self.prefill_cost.seconds
        if self.position == begin and until == end:
            return whole
        span = perf.whole_prefill(end) - perf.whole_prefill(begin)
        if span <= 0:
            return whole * (until - self.position) / (end - begin)
        return whole * (perf.whole_prefill(until) - perf.whole_prefill(self.position)) / span
