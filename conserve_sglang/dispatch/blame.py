"""Which worker a turn's failure counts against, for the circuit breakers.

A broken connection is the worker's doing. An error that a worker answered with may be the
request's: such a worker is a suspect until another one answers the same turn. A request that
nobody can answer so opens no breaker, however often it comes.

An error may also be the other worker's of the pair, whose death is noticed later: the next attempt
leaves both out if it can.
"""

from conserve_sglang.dispatch.commands import BlameWorker
from conserve_sglang.dispatch.events import FailureCause
from conserve_sglang.dispatch.kv_ledger import WorkerState
from conserve_sglang.dispatch.state import Suspect, Turn


def failed(turn: Turn, cause: FailureCause, *, by_answer: bool = False) -> list[BlameWorker]:
    """Who is to be blamed at once for a sent turn's failure; who is not, may be suspected."""
    worker, epoch, partner, partner_epoch = _at_fault(turn, cause)
    if worker is None:
        return []
    worker_id = worker.spec.worker_id
    turn.avoids += (worker_id,)
    if by_answer:
        turn.suspects += (Suspect(worker_id, partner, partner_epoch),)
        if partner is not None:
            turn.doubts += (partner.spec.worker_id,)
        return []
    if turn.conversation.is_ended or epoch != worker.epoch:
        return []  # aborted, since its client wanted it so, or since the worker was lost anyway
    return [BlameWorker(worker_id=worker_id)]


def answered(turn: Turn) -> list[BlameWorker]:
    """Who is to be blamed for a turn's failures, now that its present workers answer it.

    Where the other worker of a failed attempt was lost since, that one may have been the reason:
    a decoder answers with an error when its prefiller dies during the transfer.
    """
    suspects, turn.suspects = turn.suspects, ()
    present = {
        state.spec.worker_id for state in (turn.decoder, turn.prefiller) if state is not None
    }
    return [
        BlameWorker(worker_id=suspect.worker_id)
        for suspect in suspects
        if suspect.worker_id not in present
        and (suspect.partner is None or suspect.partner.epoch == suspect.partner_epoch)
    ]


def _at_fault(
    turn: Turn, cause: FailureCause
) -> tuple[WorkerState | None, int, WorkerState | None, int]:
    """The worker through which a turn failed, then its partner, each with its epoch."""
    decoder, prefiller = turn.decoder, turn.prefiller
    if cause is FailureCause.DECODER_FAILED:
        return decoder, turn.decoder_epoch, prefiller, turn.prefiller_epoch
    if cause is FailureCause.PREFILLER_FAILED:
        return prefiller, turn.prefiller_epoch, decoder, turn.decoder_epoch
    return None, 0, None, 0
