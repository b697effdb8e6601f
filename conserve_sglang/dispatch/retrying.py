"""Turns that came back from their workers without a whole answer: tried again, or given up."""

from conserve_sglang.dispatch import blame, busy, events
from conserve_sglang.dispatch.events import FailureCause
from conserve_sglang.dispatch.placer import Placer
from conserve_sglang.dispatch.settings import DispatchSettings
from conserve_sglang.dispatch.state import Turn
from conserve_sglang.policy.api import PhaseOneCause, Placement, RejectReason

_CAUSES = {
    FailureCause.PREFIX_MISSING: PhaseOneCause.PREFIX_MISSING,
    FailureCause.APPEND_TOO_LARGE: PhaseOneCause.LARGE_APPEND,
    FailureCause.DECODER_FAILED: PhaseOneCause.DECODER_LOST,
    FailureCause.DECODER_REMOVED: PhaseOneCause.WORKER_REMOVED,
}


def failed(
    placer: Placer, settings: DispatchSettings, event: events.TurnFailed, now: float
) -> None:
    """A turn came back before its first byte."""
    turn = placer.turns.get(event.turn_id)
    if turn is None or turn.decoder is None:
        return
    bookings, conversation, cause = placer.bookings, turn.conversation, event.cause
    is_busy, was_moving = cause in busy.BUSY, turn.is_moving
    if is_busy:
        busy.refused(turn, cause, now + settings.busy_s)
    else:
        placer.out += blame.failed(turn, cause, by_answer=event.by_answer)
    bookings.take_back(turn)
    bookings.pin_of(conversation)  # a void pin tells its cause before this failure does
    if not was_moving:  # else the pin is to a decoder that had no part in this
        if cause is FailureCause.PREFIX_MISSING:
            bookings.set_resident(conversation, 0)
        elif cause is FailureCause.DECODER_FAILED:
            placer.release(conversation)
        conversation.cause = _CAUSES.get(cause, conversation.cause)
    is_spent = turn.attempts >= settings.max_attempts
    _try_again(placer, settings, turn, now, is_spent=is_spent, is_busy=is_busy)


def interrupted(
    placer: Placer, settings: DispatchSettings, event: events.TurnInterrupted, now: float
) -> None:
    """A turn lost its decoder in the middle of its answer."""
    turn = placer.turns.get(event.turn_id)
    if turn is None or turn.decoder is None:
        return
    bookings, conversation = placer.bookings, turn.conversation
    decoder, epoch = turn.decoder, turn.decoder_epoch
    placer.out += blame.failed(turn, FailureCause.DECODER_FAILED)
    bookings.take_back(turn)
    if bookings.pin_of(conversation) is decoder and conversation.decoder_epoch == epoch:
        placer.release(conversation)
        conversation.cause = PhaseOneCause.DECODER_LOST
    turn.cause = PhaseOneCause.DECODER_LOST if decoder.epoch == epoch else decoder.lost_for
    turn.input_tokens += event.output_tokens - turn.output_tokens
    turn.output_tokens = event.output_tokens
    turn.deadline_at_s = now + settings.queue_timeout_s
    turn.num_continuations += 1
    turn.attempts = 0
    turn.has_met_busy = False
    is_spent = turn.num_continuations > settings.max_continuations
    _try_again(placer, settings, turn, now, is_spent=is_spent)


def moved(placer: Placer, turn: Turn) -> None:
    """A turn has brought its conversation's KV to another decoder: the pin follows."""
    left = placer.bookings.moved(turn)
    if left is not None:
        placer.out.append(left)


def _try_again(
    placer: Placer,
    settings: DispatchSettings,
    turn: Turn,
    now: float,
    *,
    is_spent: bool,
    is_busy: bool = False,
) -> None:
    conversation = turn.conversation
    if conversation.is_ended:
        placer.reject(turn, RejectReason.CONVERSATION_ENDED, now)
    elif is_spent:
        reason = RejectReason.WORKERS_BUSY if is_busy else RejectReason.RETRIES_SPENT
        placer.reject(turn, reason, now)
    elif turn.has_met_busy and busy.goes_past(placer, turn, now):
        placer.let_held_go(conversation, now)
    elif is_busy:
        placer.reject(turn, RejectReason.WORKERS_BUSY, now)
    elif not turn.has_met_busy and _is_to_pause(placer, settings, turn, now):
        placer.line.pause(turn, now)
        placer.let_held_go(conversation, now)
    else:
        placer.place_or_hold(turn, now)
        placer.let_held_go(conversation, now)
    placer.serve_line(now)


def _is_to_pause(placer: Placer, settings: DispatchSettings, turn: Turn, now: float) -> bool:
    """Whether the next attempt of a turn that failed twice would be at a worker that failed it.

    A worker that dies fails many attempts in the milliseconds until that is noticed; once it is,
    the turn waits for another one, and none of its attempts is lost. A turn whose deadline does
    not let it wait so long is tried at once: behind its pause it would only be rejected.
    """
    if len(turn.avoids) < 2 or turn.conversation.opener is not None:
        return False
    if now + settings.retry_pause_s >= turn.deadline_at_s:
        return False
    answer = placer.ask(turn)
    if not isinstance(answer, Placement):
        return False
    return answer.decoder in turn.avoids or answer.prefiller in turn.avoids
