"""What no turn can be served without: a worker of the role that the policy needs for it.

Asked of the policy itself, with a turn that fits everywhere: whether a prefiller is needed at all,
and for which turns, is the policy's to know. A lack of room is no such lack: that passes by itself.
"""

from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch.kv_ledger import KvLedger
from conserve_sglang.policy.api import (
    Answer,
    Defer,
    DeferReason,
    PlacementPolicy,
    RejectReason,
    TurnView,
)

_NEW = TurnView(0, 1, 1, None, 0, None)
_DECODES = (Role.DECODE, Role.MIXED)


def by_new(policy: PlacementPolicy, ledger: KvLedger) -> RejectReason | None:
    """What a conversation that begins now would wait for; None if it lacks no worker."""
    return of(policy.place(_NEW, ledger), ledger)


def by_pinned(policy: PlacementPolicy, ledger: KvLedger) -> RejectReason | None:
    """The same of a conversation that goes on where its KV is, with little to append."""
    pin = next((worker for role in _DECODES for worker in ledger.workers(role)), None)
    if pin is None:
        return RejectReason.NO_DECODER
    return of(policy.place(TurnView(0, 2, 2, pin, 1, None), ledger), ledger)


def of(answer: Answer, ledger: KvLedger) -> RejectReason | None:
    """The lack that a policy's answer speaks of. Of two, that of a decoder: without one nobody is
    served, without a prefiller some may be."""
    if not isinstance(answer, Defer):
        return None
    if answer.reason is DeferReason.NO_DECODER:
        return RejectReason.NO_DECODER
    if answer.reason is not DeferReason.NO_PREFILLER:
        return None
    decodes = any(ledger.workers(role) for role in _DECODES)
    return RejectReason.NO_PREFILLER if decodes else RejectReason.NO_DECODER
