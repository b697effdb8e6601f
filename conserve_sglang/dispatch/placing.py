"""What the policy is asked, and what its answer means for the workers."""

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch.bookings import Bookings
from conserve_sglang.dispatch.commands import SendTurn
from conserve_sglang.dispatch.kv_ledger import KvLedger
from conserve_sglang.dispatch.settings import DispatchSettings
from conserve_sglang.dispatch.state import Turn
from conserve_sglang.policy.api import NOTHING_SEEN, PhaseOneCause, Placement, TurnView

UNBOUNDED_LOCAL_TOKENS = 999_999_999


def turn_view(
    turn: Turn, bookings: Bookings, output_room: int, busy: tuple[WorkerId, ...] = ()
) -> TurnView:
    """A turn as the policy sees it now, with so much room for its answer; notes on the turn how
    much room that is. A pin to one of the `busy` workers is not shown."""
    conversation = turn.conversation
    pin = bookings.pin_of(conversation)
    resident, cause = conversation.resident_tokens, conversation.cause
    if pin is not None and pin.intake == 0:  # to the policy as if it were lost, but nothing is yet
        resident, cause = 0, pin.closed_for
        pin = None
    elif pin is not None and pin.spec.worker_id in busy:
        resident, cause = 0, PhaseOneCause.DECODER_BUSY
        pin = None
    turn.needed_tokens = _needed_tokens(turn, bookings.ledger, output_room)
    return TurnView(
        turn.arrival_number,
        turn.input_tokens,
        turn.needed_tokens,
        None if pin is None else pin.spec.worker_id,
        resident,
        turn.cause or cause,
        conversation.history or NOTHING_SEEN,
    )


def _needed_tokens(turn: Turn, ledger: KvLedger, output_room: int) -> int:
    """Input and output room, the latter only as far as the largest pool has it.

    A length that was only derived and exceeds every pool is no ground for waiting or making
    room: the turn needs nothing but output room here, and the worker, which counts, decides.
    """
    needed = turn.input_tokens + output_room
    largest = ledger.largest_pool
    if needed <= largest or largest == 0:
        return needed
    if turn.is_exact or turn.input_tokens <= largest:
        return max(turn.input_tokens, largest)
    return output_room


def local_limits(
    turn: Turn, placement: Placement, ledger: KvLedger, settings: DispatchSettings
) -> LocalLimits | None:
    """What a decoder may prefill by itself; None for phase 1 and for mixed workers."""
    if placement.prefiller is not None:
        return None
    if ledger.state(placement.decoder).spec.role is not Role.DECODE:
        return None
    if placement.max_local_tokens is None:
        return LocalLimits(UNBOUNDED_LOCAL_TOKENS, 0)
    expected = turn.conversation.prompt_tokens - settings.prefix_slack_tokens
    if turn.input_tokens < turn.conversation.prompt_tokens:
        expected = 0  # a prompt shorter than the last one does not continue it
    return LocalLimits(placement.max_local_tokens, max(0, expected))


def send_turn(turn: Turn, placement: Placement, limits: LocalLimits | None) -> SendTurn:
    """The command that carries a placement out; the turn is booked by now."""
    conversation = turn.conversation
    return SendTurn(
        turn.turn_id,
        conversation.conversation_id,
        placement.decoder,
        placement.prefiller,
        limits,
        placement.reason,
        placement.keeps_kv,
        turn.attempts,
        turn.turn_index,
        conversation.resident_tokens if conversation.decoder is turn.decoder else 0,
        placement.fetches_kv,
    )
