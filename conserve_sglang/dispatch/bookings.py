"""Pins and KV bookings: what conversations and turns hold in the ledger.

Every number added to the ledger is remembered where it came from (a conversation's
`resident_tokens`, a turn's `reserved_tokens` and `backlog_tokens`), with the epoch of the worker,
so that it is taken out exactly once and never from a worker that has been lost since.
"""

from conserve_sglang.dispatch.commands import ReleaseConversation
from conserve_sglang.dispatch.kv_ledger import KvLedger, WorkerState
from conserve_sglang.dispatch.speeds import LONG_PROMPT_TOKENS, tbt_of_answer
from conserve_sglang.dispatch.state import Conversation, ConversationView, Turn, WorkerLoad
from conserve_sglang.policy.api import Placement


class Bookings:
    """Moves conversations and turns on and off workers, and keeps the ledger in step."""

    __slots__ = ("ledger",)

    def __init__(self, max_prefill_backlog_tokens: int) -> None:
        self.ledger = KvLedger(max_prefill_backlog_tokens)

    def pin_of(self, conversation: Conversation) -> WorkerState | None:
        """The decoder that holds a conversation; voids a pin whose worker was lost."""
        decoder = conversation.decoder
        if decoder is None or conversation.decoder_epoch == decoder.epoch:
            return decoder
        conversation.decoder = None
        conversation.resident_tokens = conversation.headroom_tokens = 0
        conversation.cause = decoder.lost_for
        return None

    def pin(self, conversation: Conversation, decoder: WorkerState, resident_tokens: int) -> None:
        """Pin a conversation that has no pin to the decoder that holds so much of it."""
        conversation.decoder, conversation.decoder_epoch = decoder, decoder.epoch
        decoder.num_conversations += 1
        self.set_resident(conversation, resident_tokens)

    def unpin(self, conversation: Conversation) -> ReleaseConversation | None:
        """Drop a conversation's pin; the command for its worker to let go, None without a pin."""
        pin = self.pin_of(conversation)
        if pin is None:
            return None
        self.set_resident(conversation, 0)
        self.set_headroom(conversation, 0)
        pin.num_conversations -= 1
        conversation.decoder = None
        return ReleaseConversation(
            conversation_id=conversation.conversation_id, worker_id=pin.spec.worker_id
        )

    def set_resident(self, conversation: Conversation, tokens: int) -> None:
        """State how much of a conversation its decoder holds. Nothing without a pin."""
        pin = self.pin_of(conversation)
        if pin is not None:
            self.ledger.add_resident(pin, tokens - conversation.resident_tokens)
            conversation.resident_tokens = tokens

    def set_headroom(self, conversation: Conversation, tokens: int) -> None:
        """State how much room is kept for a conversation's next turn. Nothing without a pin."""
        if tokens == conversation.headroom_tokens:
            return
        pin = self.pin_of(conversation)
        if pin is not None:
            self.ledger.add_headroom(pin, tokens - conversation.headroom_tokens)
            conversation.headroom_tokens = tokens

    def book(
        self, turn: Turn, placement: Placement, now: float = 0.0
    ) -> ReleaseConversation | None:
        """Book a turn on its workers; the command for the worker its pin left, if it moved.

        That of a turn that `is_moving` moves later, see `moved`.
        """
        ledger, conversation = self.ledger, turn.conversation
        decoder = ledger.state(placement.decoder)
        left = None
        pin = self.pin_of(conversation)
        if placement.keeps_kv and pin is not decoder:
            if not turn.is_moving or pin is None:
                turn.is_moving = False
                if pin is not None and pin.intake == 0:
                    conversation.cause = pin.closed_for
                left = self.unpin(conversation)
                conversation.decoder, conversation.decoder_epoch = decoder, decoder.epoch
                decoder.num_conversations += 1
        else:
            turn.is_moving = False
        resident = conversation.resident_tokens if conversation.decoder is decoder else 0
        turn.decoder, turn.decoder_epoch = decoder, decoder.epoch
        turn.keeps_kv = placement.keeps_kv
        lacking = turn.needed_tokens - resident
        turn.reserved_tokens = lacking if lacking > 0 else 0
        turn.attempts += 1
        turn.sent_at_s, turn.first_token_at_s = now, 0.0
        turn.prefill_tokens = max(1, turn.input_tokens - resident)
        turn.pending_tokens = turn.prefill_tokens
        decoder.num_running += 1
        ledger.add_reserved(decoder, turn.reserved_tokens)
        ledger.take_in(decoder)
        if placement.prefiller is not None:
            turn.prefiller = ledger.state(placement.prefiller)
            ledger.take_in(turn.prefiller)
            turn.prefiller_epoch = turn.prefiller.epoch
            # A derived length may be far too long; what no pool holds is not prefilled either.
            turn.backlog_tokens = min(turn.input_tokens, ledger.largest_pool)
            ledger.add_backlog(turn.prefiller, turn.backlog_tokens)
        (turn.prefiller or decoder).pending_tokens += turn.pending_tokens
        if placement.keeps_kv and (placement.prefiller is not None or resident == 0):
            conversation.opener = turn
        return left

    def moved(self, turn: Turn) -> ReleaseConversation | None:
        """The KV of a turn that moves its conversation is at its decoder, and so is the pin now;
        the command for the worker that had it."""
        conversation, decoder = turn.conversation, turn.decoder
        turn.is_moving = False
        if decoder is None or turn.decoder_epoch != decoder.epoch or conversation.is_ended:
            return None
        left = self.unpin(conversation)
        self.pin(conversation, decoder, 0)
        return left

    def prefilled(self, turn: Turn, now: float = 0.0) -> bool:
        """A turn's prefill is over; True if that brought its conversation to its decoder."""
        if not turn.pending_tokens:  # this was told before
            turn.first_token_at_s = min(now, turn.first_token_at_s)
            return False
        where = turn.prefiller or turn.decoder
        assert where is not None
        turn.first_token_at_s = now
        turn.prefill_s = where.speeds.prefilled(turn.sent_at_s, now)
        self._leave_backlog(turn)
        conversation = turn.conversation
        if turn.prefiller is not None:
            conversation.num_kv_transfers += 1
        if conversation.opener is not turn:
            return False
        conversation.opener = None
        if self.pin_of(conversation) is turn.decoder:  # it was not lost meanwhile
            conversation.cause = None
        return True

    @staticmethod
    def count_answer(turn: Turn, output_tokens: int, now: float) -> None:
        """Count a turn as answered by its workers, and note how fast."""
        decoder, prefiller = turn.decoder, turn.prefiller
        assert decoder is not None
        decoder.num_answered += 1
        if prefiller is not None:
            prefiller.num_answered += 1
        tbt_s = tbt_of_answer(turn.first_token_at_s, now, output_tokens)
        if tbt_s is None:
            return
        if turn.prefill_tokens >= LONG_PROMPT_TOKENS:
            (prefiller or decoder).speeds.note_prefill(turn.prefill_tokens, turn.prefill_s)
        decoder.speeds.note_answer(tbt_s, decoder.num_running)

    def take_back(self, turn: Turn) -> None:
        """Undo a sent turn's bookings; a pin it was still opening goes with them."""
        if turn.decoder is None:
            return
        decoder = turn.decoder
        if turn.pending_tokens:
            self._leave_backlog(turn)
        if turn.decoder_epoch == decoder.epoch:
            self.ledger.add_reserved(decoder, -turn.reserved_tokens)
            decoder.num_running -= 1
        turn.decoder, turn.prefiller, turn.reserved_tokens = None, None, 0
        turn.is_moving = False
        conversation = turn.conversation
        if conversation.opener is turn:
            conversation.opener = None
            if conversation.resident_tokens == 0:
                self.unpin(conversation)

    def view(self, conversation: Conversation) -> ConversationView:
        """A conversation as others see it."""
        pin = self.pin_of(conversation)
        return ConversationView(
            conversation.conversation_id,
            None if pin is None else pin.spec.worker_id,
            conversation.resident_tokens,
            conversation.prompt_tokens,
            conversation.num_turns,
            conversation.num_kv_transfers,
            conversation.num_open_turns,
            conversation.last_active_at_s,
        )

    def loads(self) -> tuple[WorkerLoad, ...]:
        """Every worker announced and not removed, in order of registration."""
        return tuple(
            WorkerLoad(
                worker_id=state.spec.worker_id,
                role=state.spec.role,
                tier=state.spec.tier,
                is_up=state.is_up,
                takes_turns=state.takes_turns,
                capacity_tokens=state.spec.kv_capacity_tokens,
                resident_tokens=state.resident_tokens,
                reserved_tokens=state.reserved_tokens,
                free_tokens=state.free_tokens,
                backlog_tokens=state.backlog_tokens,
                num_conversations=state.num_conversations,
                foreign_tokens=state.foreign_tokens,
            )
            for state in self.ledger.states()
        )

    def _leave_backlog(self, turn: Turn) -> None:
        prefiller, decoder = turn.prefiller, turn.decoder
        if prefiller is not None:
            if turn.prefiller_epoch == prefiller.epoch:
                self.ledger.add_backlog(prefiller, -turn.backlog_tokens)
                prefiller.pending_tokens -= turn.pending_tokens
        elif decoder is not None and turn.decoder_epoch == decoder.epoch:
            decoder.pending_tokens -= turn.pending_tokens
        turn.backlog_tokens = turn.pending_tokens = 0
