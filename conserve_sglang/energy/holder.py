"""Has GPUs in hand: sets their caps, moves them, sees foreign changes, and puts them back.

The order of every write: the record of what was found, on disk; the write; reading it back. What
somebody else has set meanwhile is left as it is, and said. All here is called from one thread.
"""

import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from conserve_sglang.core.errors import CapsError
from conserve_sglang.energy.cap_records import CapRecord, CapRecords, boot_id
from conserve_sglang.energy.knobs import Knobs
from conserve_sglang.power.caps import Change, GpuState, Knob, Wish, plan_caps

logger = logging.getLogger(__name__)

_SLACK_W = 0.5


@dataclass(slots=True)
class HeldGpu:
    """A GPU in hand: as found, as asked for at the start (`base_w`), and as it is now.

    `is_foreign`: somebody else has changed its limit; it is not written any more.
    """

    found: GpuState
    record: CapRecord
    tiers: tuple[str, ...]
    base_w: float | None
    now_w: float | None
    is_foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PutBack:
    """What became of one GPU's record."""

    uuid: str
    index: int
    is_restored: bool
    message: str


class Holder:
    """Holds the GPUs of some wishes from `take` to `restore`."""

    def __init__(self, knobs: Knobs, records: CapRecords) -> None:
        self._knobs = knobs
        self._records = records
        self.gpus: dict[str, HeldGpu] = {}
        self.notices: tuple[str, ...] = ()
        self._said: list[str] = []

    def take(self, asked: Sequence[Wish], *, allow_raise: bool = False) -> tuple[Change, ...]:
        """Set all that is asked for, or nothing; what was set. Raises `CapsError` saying why."""
        gpus = self._knobs.look()
        try:
            for wish in asked:
                if wish.index in gpus:
                    self._lock(gpus[wish.index])
            gpus = self._knobs.look()  # nobody of us changes them from here on
            plan = plan_caps(asked, gpus, allow_raise=allow_raise)
            if plan.problems:
                raise CapsError("\n".join(("no cap was set:", *plan.problems)))
            self.notices = plan.notices
            for wish in asked:
                self._begin(gpus[wish.index], wish)
            for change in plan.changes:
                self._carry_out(change)
            self._try_permission({change.uuid for change in plan.changes})
        except CapsError:
            self.restore()
            raise
        for held in self.gpus.values():
            held.base_w = held.now_w
        return plan.changes

    def move(self, caps: Mapping[str, float], why: str) -> None:
        """Set other limits, none above the one at the start. Raises `CapsError`; what was set
        before that stays set."""
        for uuid, watts in caps.items():
            held = self.gpus.get(uuid)
            if held is None:
                raise CapsError(f"{uuid} is not in hand; these are: {', '.join(self.gpus)}")
            if held.base_w is None or held.found.least_w is None:
                raise CapsError(f"{uuid} has no power limit that can be set")
            if not held.found.least_w <= watts <= held.base_w + _SLACK_W:
                raise CapsError(
                    f"{uuid}: {watts:g} W is out of range: {held.found.least_w:g} to"
                    f" {held.base_w:g} W"
                )
        for uuid, watts in caps.items():
            self._move(self.gpus[uuid], watts, why)

    def rest(self, why: str) -> None:
        """Go back to what was asked for at the start."""
        for held in self.gpus.values():
            if held.base_w is not None and held.now_w != held.base_w:
                self._move(held, held.base_w, why)

    def look(self) -> list[str]:
        """See whether somebody else has changed a limit; what there is to say of it, once."""
        self._look()
        said, self._said = self._said, []
        return said

    def restore(self) -> list[PutBack]:
        """Put every GPU back as it was found and let go of it."""
        records = [held.record for held in self.gpus.values() if self._records.has(held.found.uuid)]
        done = [put_back(record, self._knobs, self._records) for record in records]
        self.gpus.clear()
        self._records.unlock_all()
        return done

    # inside

    def _look(self) -> None:
        for uuid, held in self.gpus.items():
            if held.is_foreign:
                continue
            if not self._records.has(uuid):
                self._foreign(held, f"{uuid}: its record is gone: somebody has put it back")
                continue
            found_w = self._knobs.in_force(uuid).set_w
            if found_w is not None and held.now_w is not None and _differ(found_w, held.now_w):
                self._foreign(
                    held,
                    f"GPU {held.found.index} ({uuid}): somebody else has set its power limit to"
                    f" {found_w:g} W (ours was {held.now_w:g} W); it is controlled no more",
                )

    def _foreign(self, held: HeldGpu, message: str) -> None:
        held.is_foreign = True
        logger.warning(message)
        self._said.append(message)

    def _lock(self, gpu: GpuState) -> None:
        self._records.lock(gpu.uuid)
        if self._records.has(gpu.uuid):
            raise CapsError(
                f"{gpu.uuid} was left as a crash found it: run conserve-sglang doctor --restore"
            )

    def _begin(self, gpu: GpuState, wish: Wish) -> None:
        record = CapRecord(
            uuid=gpu.uuid,
            index=gpu.index,
            name=gpu.name,
            boot_id=boot_id(),
            found_cap_w=gpu.cap_w,
            was_locked=gpu.is_locked,
            pid=os.getpid(),
            at_s=time.time(),
        )
        self._records.write(record)
        self.gpus[gpu.uuid] = HeldGpu(
            found=gpu, record=record, tiers=wish.tiers, base_w=gpu.cap_w, now_w=gpu.cap_w
        )

    def _carry_out(self, change: Change) -> None:
        held = self.gpus[change.uuid]
        if change.knob is Knob.POWER_CAP:
            self._set_cap(held, change.after, "launch")
            return
        self._keep(held, replace(held.record, has_clock=True))
        self._noted(change.uuid, "SM clock", change.after, "launch")
        self._knobs.lock_clock(change.uuid, round(change.after))

    def _try_permission(self, changed: set[str]) -> None:
        """A GPU that a controller may move later: set what it has, to learn of refusals now."""
        for uuid, held in self.gpus.items():
            if uuid not in changed and held.now_w is not None:
                self._set_cap(held, held.now_w, "may it be set?")

    def _move(self, held: HeldGpu, watts: float, why: str) -> None:
        if held.is_foreign or held.now_w is None or not _differ(watts, held.now_w):
            return
        found_w = self._knobs.in_force(held.found.uuid).set_w
        if found_w is None or _differ(found_w, held.now_w):
            self._look()
            return
        self._set_cap(held, watts, why)

    def _set_cap(self, held: HeldGpu, watts: float, why: str) -> None:
        assert held.now_w is not None
        uuid, before_w = held.found.uuid, held.now_w
        self._keep(held, replace(held.record, ours_w=(before_w, watts)))
        self._noted(uuid, "power cap", watts, why, before=before_w)
        self._knobs.set_cap(uuid, watts)
        held.now_w = watts

    def _keep(self, held: HeldGpu, record: CapRecord) -> None:
        if not self._records.has(record.uuid):
            raise CapsError(f"{record.uuid}: its record is gone: somebody has put it back")
        self._records.write(record)
        held.record = record

    def _noted(
        self, uuid: str, knob: str, after: float, why: str, before: float | None = None
    ) -> None:
        logger.info("%s: %s %s -> %g (%s)", uuid, knob, before, after, why)
        self._records.note(uuid, knob=knob, before=before, after=after, why=why)


def put_back(
    record: CapRecord, knobs: Knobs, records: CapRecords, *, is_forced: bool = False
) -> PutBack:
    """Put one GPU back by its record and remove it. What another hand has set is left, unless
    `is_forced`. A GPU that cannot be set keeps its record."""

    def told(message: str, *, is_restored: bool = True) -> PutBack:
        if is_restored:
            records.remove(record.uuid)
        return PutBack(
            uuid=record.uuid, index=record.index, is_restored=is_restored, message=message
        )

    if record.boot_id != boot_id():
        return told("the machine was restarted since, which undoes what was set")
    said = []
    try:
        if record.has_clock:
            records.note(record.uuid, knob="SM clock", after="reset", why="put back")
            knobs.reset_clock(record.uuid)
            said.append(
                "SM clock reset (it was locked before; NVML does not tell to what)"
                if record.was_locked
                else "SM clock reset"
            )
        said.append(_put_back_cap(record, knobs, records, is_forced=is_forced))
    except CapsError as error:
        return told(str(error), is_restored=False)
    return told(", ".join(said))


def _put_back_cap(record: CapRecord, knobs: Knobs, records: CapRecords, *, is_forced: bool) -> str:
    found_w = record.found_cap_w
    if found_w is None or not record.ours_w:
        return "power limit never changed"
    now_w = knobs.in_force(record.uuid).set_w
    if now_w is not None and not _differ(now_w, found_w):
        return f"power limit {found_w:g} W, as found"
    is_ours = any(now_w is not None and not _differ(now_w, ours) for ours in record.ours_w)
    if not is_ours and not is_forced:
        return f"power limit left at {now_w or 0:g} W, which somebody else has set"
    records.note(record.uuid, knob="power cap", before=now_w, after=found_w, why="put back")
    knobs.set_cap(record.uuid, found_w)
    return f"power limit put back to {found_w:g} W"


def restore_all(
    knobs: Knobs,
    records: CapRecords,
    *,
    is_forced: bool = False,
    only: Collection[str] | None = None,
) -> list[PutBack]:
    """Replay every record that nobody holds, or `only` these GPUs': what a crash left behind."""
    done = []
    for record in list(records.read_all()):
        if only is not None and record.uuid not in only:
            continue
        with suppress(CapsError):
            records.lock(record.uuid)
            done.append(put_back(record, knobs, records, is_forced=is_forced))
            continue
        message = "in the hands of a running process, which puts it back when it ends"
        done.append(
            PutBack(uuid=record.uuid, index=record.index, is_restored=False, message=message)
        )
    records.unlock_all()
    return done


def _differ(watts: float, other: float) -> bool:
    return abs(watts - other) > _SLACK_W
