"""Placements, rejections and failures in a reader's words."""

from conserve_sglang.policy.api import PlacementReason, RejectReason

_STATES = {1: "answered", 2: "not answered whole", 3: "rejected"}

_PLACED = {
    PlacementReason.FIRST_TURN: "the conversation is new",
    PlacementReason.PINNED: "the conversation is pinned to {decoder}, which prefilled the rest",
    PlacementReason.LARGE_APPEND: "what was appended is too long to prefill beside running decodes",
    PlacementReason.PREFIX_MISSING: "the decoder no longer had the conversation's KV",
    PlacementReason.DECODER_LOST: "the conversation's decoder was lost or failed",
    PlacementReason.DRAINED: "the conversation's decoder was drained",
    PlacementReason.WORKER_REMOVED: "an operator removed the conversation's decoder",
    PlacementReason.RECLAIMED: "the KV was let go while the conversation was idle",
    PlacementReason.EVERY_TURN: "this policy sends every turn through a prefiller",
    PlacementReason.STICKY: "this policy keeps the conversation on one worker",
    PlacementReason.ROTATION: "this policy rotates turns over the workers",
    PlacementReason.SPILLED: "the prefillers had too much before them, so {decoder} prefilled it",
    PlacementReason.KEPT_ON_PREFILLER: "{decoder}, which prefilled it, had room to decode it too",
    PlacementReason.OFFLOADED: "this policy sends this append to a prefiller",
    PlacementReason.DECODER_BUSY: "the conversation's decoder said that it was busy",
}
_REJECTED = {
    RejectReason.TOO_LONG: "no worker's KV pool is large enough for the prompt",
    RejectReason.QUEUE_FULL: "too many turns were waiting",
    RejectReason.QUEUE_TIMEOUT: "no place became free before its deadline",
    RejectReason.NO_DECODER: "no worker that can decode took turns before its deadline",
    RejectReason.NO_PREFILLER: "no worker that can prefill took turns before its deadline",
    RejectReason.RETRIES_SPENT: "every attempt failed",
    RejectReason.TOO_MANY_CONVERSATIONS: "too many conversations were live, none of them idle",
    RejectReason.WORKERS_BUSY: "its worker said that it was busy, and no other could take it",
    RejectReason.CONVERSATION_ENDED: "the conversation was ended while the turn was open",
}
_FAILED = {
    "prefix_missing": "the decoder refused it: the prefix it was to find is gone",
    "append_too_large": "the decoder refused it: it found more to prefill than it may",
    "decoder_failed": "the decoder did not answer",
    "prefiller_failed": "the prefiller did not answer",
    "decoder_busy": "the decoder said that it was busy",
    "prefiller_busy": "the prefiller said that it was busy",
    "decoder_removed": "an operator removed the decoder",
    "prefiller_removed": "an operator removed the prefiller",
    "interrupted": "the answer broke off and was continued elsewhere",
}


def ended(end: int, is_sent: bool, has_begun: bool) -> str:
    """What state a turn is in, or how it ended."""
    if end:
        return _STATES[end]
    return "answering" if has_begun else "sent" if is_sent else "queued"


def because(
    reason: PlacementReason | None,
    rejection: RejectReason | None,
    decoder: str | None,
    prefiller: str | None,
) -> str | None:
    """Why a turn ran, or did not run, where it did; None while nothing was decided."""
    if rejection is not None:
        return _REJECTED.get(rejection, rejection.value)
    if reason is None:
        return None
    words = _PLACED[reason].format(decoder=decoder)
    if prefiller is not None:
        words += f": {prefiller} prefilled the prompt and its KV moved to {decoder}"
    return words


def what_failed(cause: str) -> str:
    """Why an attempt failed."""
    return _FAILED[cause]
