"""What becomes of a turn whose worker answers that it is busy: SGLang's own queue is full.

Nothing is broken then, so nobody is blamed. The turn is tried at once at other workers, within its
attempts, if the policy finds it a place there that no turn in line waits for. Else its client is
told, and nothing was moved: a conversation that goes to another decoder is pinned there only once
its KV is there.

A turn that was refused so goes to no worker that has said the same, to whichever turn, within
`busy_s`. So when all are busy nothing is tried twice: what this adds to an overload is, for each
worker and `busy_s`, one attempt and those sent there before it was answered. Where a turn goes
first does not depend on it: one request that workers refuse as if they were busy sends no other
turn elsewhere.
"""

from conserve_sglang.dispatch.events import FailureCause
from conserve_sglang.dispatch.placer import Placer
from conserve_sglang.dispatch.state import Turn
from conserve_sglang.policy.api import Placement

BUSY = frozenset({FailureCause.DECODER_BUSY, FailureCause.PREFILLER_BUSY})


def refused(turn: Turn, cause: FailureCause, until_s: float) -> None:
    """A worker of a sent turn said that it is busy: it counts as such until then."""
    turn.has_met_busy = True
    worker, epoch = turn.decoder, turn.decoder_epoch
    if cause is FailureCause.PREFILLER_BUSY:
        worker, epoch = turn.prefiller, turn.prefiller_epoch
    if worker is None:
        return
    turn.avoids += (worker.spec.worker_id,)
    if epoch == worker.epoch:
        worker.busy_until_s = until_s


def goes_past(placer: Placer, turn: Turn, now: float) -> bool:
    """Send such a turn at once past the workers that failed it or have been busy lately, if there
    is a place that no waiting turn comes first for."""
    if turn.conversation.opener is not None:
        return False  # its conversation is on its way somewhere
    states = placer.bookings.ledger.states()
    lately = (state.spec.worker_id for state in states if state.busy_until_s > now)
    answer = placer.ask(turn, (*turn.avoids, *lately))
    if not isinstance(answer, Placement) or not placer.may_go(turn, answer):
        return False
    turn.is_moving = True
    placer.send(turn, answer, now)
    return True
