"""What of the stored conversations still holds, now that the workers have been met. Pure."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from conserve_sglang.state.record import SavedConversation


@dataclass(frozen=True, slots=True, kw_only=True)
class MetWorker:
    """A worker that answers turns, as it is now."""

    incarnation: str | None
    kv_capacity_tokens: int


@dataclass(slots=True, kw_only=True)
class Reconciled:
    """What to do with the stored conversations.

    `pinned` and `unpinned` live on, the longest idle first; `absent` are those of `unpinned` whose
    worker may still come. `ended` outlived their time. `releases` are pins whose worker holds KV
    that nobody counts any more, by worker. The counts say why pins were dropped.
    """

    pinned: list[SavedConversation] = field(default_factory=list)
    unpinned: list[SavedConversation] = field(default_factory=list)
    absent: list[SavedConversation] = field(default_factory=list)
    ended: list[SavedConversation] = field(default_factory=list)
    releases: dict[str, list[str]] = field(default_factory=dict)
    num_restarted: int = 0
    num_removed: int = 0
    num_over_capacity: int = 0


def reconcile(
    saved: Iterable[SavedConversation],
    workers: Mapping[str, MetWorker],
    planned: Set[str],
    *,
    oldest_at_wall: float,
) -> Reconciled:
    """Judge stored conversations by the workers met; `planned` are all of the tier map.

    A conversation last active before `oldest_at_wall` has ended. Where a worker's conversations
    exceed its KV pool, the longest idle lose their pin.
    """
    found = Reconciled()
    room = {name: worker.kv_capacity_tokens for name, worker in workers.items()}
    for each in sorted(saved, key=lambda one: one.last_active_at_wall, reverse=True):
        worker = None if each.worker is None else workers.get(each.worker)
        holds_kv = worker is not None and worker.incarnation == each.incarnation
        if each.last_active_at_wall < oldest_at_wall:
            found.ended.append(each)
        elif each.worker is None:
            found.unpinned.append(each)
            continue
        elif holds_kv and room[each.worker] >= each.resident_tokens:
            room[each.worker] -= each.resident_tokens
            found.pinned.append(each)
            continue
        else:
            found.unpinned.append(each)
            _note_why(found, each, is_met=worker is not None, is_same=holds_kv, planned=planned)
        if holds_kv and each.worker is not None:
            found.releases.setdefault(each.worker, []).append(each.key)
    found.pinned.reverse()
    found.unpinned.reverse()
    return found


def _note_why(
    found: Reconciled, saved: SavedConversation, *, is_met: bool, is_same: bool, planned: Set[str]
) -> None:
    if is_same:
        found.num_over_capacity += 1
    elif is_met:
        found.num_restarted += 1
    elif saved.worker in planned:
        found.absent.append(saved)
    else:
        found.num_removed += 1
