"""Turns that waited until their deadline, and what each is told that it waited for."""

from conserve_sglang.dispatch import lacking
from conserve_sglang.dispatch.placer import Placer
from conserve_sglang.dispatch.state import Turn
from conserve_sglang.policy.api import RejectReason


def reject(placer: Placer, turn: Turn, now: float) -> None:
    """A turn waited for room, for its conversation, or for a worker that is not there."""
    to_hold = not turn.is_waiting
    lack = None if to_hold else lacking.of(placer.ask(turn), placer.bookings.ledger)
    if lack is not None:
        placer.reject(turn, lack, now)  # no rate tells when a worker comes back
        return
    tenants = placer.conversations.tenants()
    retry_after_s = placer.line.retry_after_s(turn, tenants, now, to_hold=to_hold)
    placer.reject(turn, RejectReason.QUEUE_TIMEOUT, now, retry_after_s)
