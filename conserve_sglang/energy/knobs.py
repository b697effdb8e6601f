"""Sets power limits and SM clocks through NVML, reading back each one.

Only the holder (`holder.py`) uses this to write: it keeps a record of what was found, and puts it
back. nvmlDeviceSetPowerManagementLimit is used in its first version: of nvidia-ml-py 13.615.71 the
second does not look at what NVML answers. Persistence mode, memory clocks and MIG are never set.
"""

from dataclasses import dataclass
from typing import Any

from conserve_sglang.core.errors import CapsError, CapsNotPermitted, MeterError
from conserve_sglang.energy.nvml import open_bindings
from conserve_sglang.power.caps import GpuState

_SLACK_W = 0.5  # NVML counts milliwatts, some cards round to whole watts
_NOT_PERMITTED = (
    "cannot set the {what} of {uuid}: needs root or CAP_SYS_ADMIN (NVML: {error}). Run as root"
    " (in a container with --cap-add SYS_ADMIN), or leave caps out: --no-caps, or --dry-run"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """A GPU's limit as set and as enforced, in watts, and its SM clock now."""

    set_w: float | None
    enforced_w: float | None
    sm_clock_mhz: int | None


class Knobs:
    """The GPUs of this machine. Raises `CapsError` without bindings or driver."""

    def __init__(self) -> None:
        try:
            self._nvml = open_bindings()
        except MeterError as error:
            raise CapsError(f"power caps and clocks cannot be set here: {error}") from error
        self._handles: dict[str, Any] = {}

    def look(self) -> dict[int, GpuState]:
        """Every GPU by its index, which is NVML's: the order on the PCI bus."""
        count = self._nvml.nvmlDeviceGetCount()
        return {index: self._look(index) for index in range(count)}

    def in_force(self, uuid: str) -> InForce:
        """What is set on a GPU now."""
        nvml, handle = self._nvml, self._handle(uuid)
        return InForce(
            set_w=self._watts(nvml.nvmlDeviceGetPowerManagementLimit, handle),
            enforced_w=self._watts(nvml.nvmlDeviceGetEnforcedPowerLimit, handle),
            sm_clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        )

    def set_cap(self, uuid: str, watts: float) -> None:
        """Set a power limit. Raises `CapsError` if it is not in force afterwards."""
        self._write(
            uuid,
            "power limit",
            self._nvml.nvmlDeviceSetPowerManagementLimit,
            round(watts * 1e3),
        )
        found = self.in_force(uuid)
        for said, value in (("set to", found.set_w), ("enforced at", found.enforced_w)):
            if value is None or abs(value - watts) > _SLACK_W:
                shown = "nothing" if value is None else f"{value:g} W"
                raise CapsError(
                    f"{uuid}: a power limit of {watts:g} W was set, and read back it is"
                    f" {said} {shown}"
                )

    def lock_clock(self, uuid: str, mhz: int) -> None:
        """Lock the SM clock. NVML does not tell the lock; a clock above it shows it failed."""
        self._write(uuid, "SM clock", self._nvml.nvmlDeviceSetGpuLockedClocks, mhz, mhz)
        found = self.in_force(uuid).sm_clock_mhz
        if found is not None and found > mhz:
            raise CapsError(f"{uuid}: the SM clock was locked to {mhz} MHz, and is {found} MHz")

    def reset_clock(self, uuid: str) -> None:
        """Undo a lock."""
        self._write(uuid, "SM clock", self._nvml.nvmlDeviceResetGpuLockedClocks)

    def close(self) -> None:
        """Let go of NVML. What was set stays."""
        self._nvml.nvmlShutdown()

    # inside

    def _look(self, index: int) -> GpuState:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = nvml.nvmlDeviceGetUUID(handle)
        self._handles[uuid] = handle
        least_mw, most_mw = self._ask(
            nvml.nvmlDeviceGetPowerManagementLimitConstraints, handle
        ) or (None, None)
        mode = self._ask(nvml.nvmlDeviceGetMigMode, handle)
        return GpuState(
            uuid=uuid,
            index=index,
            name=nvml.nvmlDeviceGetName(handle),
            is_mig=mode is not None and 1 in mode,
            cap_w=self._watts(nvml.nvmlDeviceGetPowerManagementLimit, handle),
            least_w=None if least_mw is None else least_mw / 1e3,
            most_w=None if most_mw is None else most_mw / 1e3,
            sm_clocks_mhz=self._clocks(handle),
            reach_mhz=self._ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        )

    def _handle(self, uuid: str) -> Any:
        if uuid not in self._handles:
            try:
                self._handles[uuid] = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            except self._nvml.NVMLError as error:
                raise CapsError(f"there is no GPU {uuid} on this machine: {error}") from error
        return self._handles[uuid]

    def _write(self, uuid: str, what: str, setter: Any, *values: int) -> None:
        handle = self._handle(uuid)
        try:
            setter(handle, *values)
        except self._nvml.NVMLError_NoPermission as error:
            raise CapsNotPermitted(
                _NOT_PERMITTED.format(what=what, uuid=uuid, error=error)
            ) from error
        except self._nvml.NVMLError as error:
            raise CapsError(f"cannot set the {what} of {uuid}: NVML: {error}") from error

    def _ask(self, read: Any, *arguments: Any) -> Any:
        """What NVML answers; None where a card or driver does not have it."""
        try:
            return read(*arguments)
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            return None
        except self._nvml.NVMLError as error:
            raise CapsError(f"a GPU cannot be read: {error}") from error

    def _watts(self, read: Any, handle: Any) -> float | None:
        milliwatts = self._ask(read, handle)
        return None if milliwatts is None else milliwatts / 1e3

    def _clocks(self, handle: Any) -> tuple[int, ...]:
        nvml = self._nvml
        memory = self._ask(nvml.nvmlDeviceGetSupportedMemoryClocks, handle)
        if not memory:
            return ()
        found = self._ask(nvml.nvmlDeviceGetSupportedGraphicsClocks, handle, max(memory))
        return tuple(sorted(found or (), reverse=True))
