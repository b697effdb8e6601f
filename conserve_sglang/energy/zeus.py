"""GPUs, CPU packages and their memory through zeus: its device layer, over the same counters.

GPUs: NVML's total-energy counter. CPU packages and DRAM: RAPL, which needs root, or a zeusd beside
us (zeus reads `ZEUSD_SOCK_PATH`). Its monitors are not used: `ZeusMonitor` measures windows, calls
torch.cuda.synchronize unless told not to and says 0 J of a machine without GPUs, and `PowerMonitor`
integrates deduplicated samples, which makes 0 J of constant power (zeus 0.16.0, all of it). Here a
machine that measures nothing is an error. zeus counts the GPUs of `CUDA_VISIBLE_DEVICES`; they are
told apart by UUID.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy.counter import median_gap_s
from conserve_sglang.energy.meter import Device, Kind, Origin, Reading

GPU_SOURCE = "zeus, nvml total-energy counter"
CPU_SOURCE = "zeus, RAPL"
NOT_INSTALLED = "zeus is not installed: pip install 'conserve-sglang[energy]'"


@dataclass(frozen=True, slots=True)
class _Track:
    """One device: how its millijoules and watts are read."""

    device: Device
    millijoules: Callable[[], float]
    watts: Callable[[], float | None]
    source: str
    begin_j: float = 0.0
    period_s: float | None = None


class ZeusMeter:
    """Everything zeus finds here, or only GPUs, or only CPU packages with their memory.

    Only reads. Raises `MeterError` without zeus, and where what was asked for is not there; with
    both kinds asked for, where there is neither. With `uuids` it opens these GPUs and no other, in
    that order, and each of them has to be there.
    """

    def __init__(
        self,
        *,
        with_gpus: bool = True,
        with_cpus: bool = True,
        uuids: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.problems: list[str] = []
        tracks: list[_Track] = []
        for is_asked, find in ((with_gpus, _gpus), (with_cpus, _cpus)):
            if is_asked:
                try:
                    tracks += find()
                except MeterError as error:
                    self.problems.append(str(error))
        if uuids is not None:
            tracks = self._chosen(tracks, uuids)
        if not tracks:
            raise MeterError(" ".join(self.problems) or "zeus was asked for no device.")
        self._tracks = [replace(track, begin_j=self._joules(track)) for track in tracks]
        # Power is told for GPUs alone; for the others it is that since the reading before.
        self._before: dict[str, tuple[float, float]] = {}

    def devices(self) -> tuple[Device, ...]:
        """GPUs in zeus' order or as asked for, then each CPU package with its memory behind it."""
        return tuple(track.device for track in self._tracks)

    def read(self) -> dict[str, Reading]:
        """Each device now."""
        return {track.device.device_id: self._read(track) for track in self._tracks}

    def measure_periods(self, steps: int = 5, timeout_s: float = 3.0) -> None:
        """Watch how often each counter changes: the median of `steps` gaps. Blocks meanwhile."""
        self._tracks = [
            replace(
                track,
                period_s=median_gap_s(partial(self._joules, track), self._clock, steps, timeout_s),
            )
            for track in self._tracks
        ]

    def close(self) -> None:
        """zeus holds NVML until the process ends."""

    def _chosen(self, tracks: list[_Track], uuids: Sequence[str]) -> list[_Track]:
        """The GPUs with these UUIDs, and whatever is no GPU."""
        gpus = {each.device.device_id: each for each in tracks if each.device.kind is Kind.GPU}
        missing = [uuid for uuid in uuids if uuid not in gpus]
        if missing:
            shown = os.environ.get("CUDA_VISIBLE_DEVICES")
            hint = f" It counts those of CUDA_VISIBLE_DEVICES={shown}: unset that." if shown else ""
            why = " ".join([f"zeus finds no GPU {', '.join(missing)}.{hint}", *self.problems])
            raise MeterError(why)
        others = [each for each in tracks if each.device.kind is not Kind.GPU]
        return [*(gpus[uuid] for uuid in uuids), *others]

    def _read(self, track: _Track) -> Reading:
        now, joules = self._clock(), self._joules(track) - track.begin_j
        name = track.device.device_id
        try:
            watts = track.watts()
        except Exception as error:
            raise _gone(track, error) from error
        if track.device.kind is not Kind.GPU:
            before_s, before_j = self._before.get(name, (now, joules))
            watts = (joules - before_j) / (now - before_s) if now > before_s else None
            self._before[name] = (now, joules)
        return Reading(
            device_id=name,
            at_s=now,
            joules=joules,
            watts=watts,
            origin=Origin.MEASURED,
            source=track.source,
            period_s=track.period_s,
        )

    def _joules(self, track: _Track) -> float:
        try:
            return track.millijoules() / 1e3
        except Exception as error:  # zeus has a tree of them, and RAPL files raise the system's
            raise _gone(track, error) from error


def _gone(track: _Track, error: Exception) -> MeterError:
    return MeterError(f"{track.device.device_id} cannot be read through zeus: {error}")


def _zeus(module: str) -> Any:
    """A module of zeus, which refuses to start beside an unofficial `pynvml`."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MeterError(f"{NOT_INSTALLED} ({error}).") from error
    except RuntimeError as error:
        raise MeterError(f"zeus does not start: {error}") from error


def _gpus() -> Iterator[_Track]:
    gpu = _zeus("zeus.device.gpu")
    try:
        gpus = gpu.get_gpus()
    except (gpu.ZeusGPUInitError, ImportError) as error:  # the latter for a foreign pynvml
        raise MeterError(f"zeus finds no GPU on this machine: {error}") from error
    nvml = import_module("pynvml")
    for index, each in enumerate(gpus.gpus):
        device = Device(
            device_id=str(nvml.nvmlDeviceGetUUID(each.handle)),
            kind=Kind.GPU,
            name=str(gpus.get_name(index)),
        )
        watts = _gpu_watts(each, gpu.ZeusGPUNotSupportedError)
        yield _Track(device, each.get_total_energy_consumption, watts, GPU_SOURCE)


def _gpu_watts(gpu: Any, not_supported: type[Exception]) -> Callable[[], float | None]:
    def watts() -> float | None:
        try:
            return float(gpu.get_instant_power_usage()) / 1e3
        except not_supported:
            return None

    return watts


def _cpus() -> Iterator[_Track]:
    common = _zeus("zeus.device.cpu.common")
    try:
        cpus = _zeus("zeus.device.cpu").get_cpus().cpus
    except common.ZeusBaseCPUError as error:
        raise MeterError(f"zeus reads no RAPL counter on this machine: {error}") from error
    for index, cpu in enumerate(cpus):
        device = Device(
            device_id=f"cpu-package-{index}", kind=Kind.CPU_PACKAGE, name=f"CPU package {index}"
        )
        file = getattr(cpu, "rapl_file", None)  # through zeusd there is none
        package = _RaplFile(file).millijoules if file is not None else _told(cpu, "cpu_mj")
        yield _Track(device, package, _nothing, CPU_SOURCE)
        if cpu.supports_get_dram_energy_consumption():
            name = f"memory of package {index}"
            memory = Device(device_id=f"dram-{index}", kind=Kind.DRAM, name=name)
            dram = _told(cpu, "dram_mj") if file is None else _RaplFile(cpu.dram).millijoules
            yield _Track(memory, dram, _nothing, CPU_SOURCE)


def _told(cpu: Any, field: str) -> Callable[[], float]:
    return lambda: float(getattr(cpu.get_total_energy_consumption(), field))


class _RaplFile:
    """A counter that zeus found. It wraps after some minutes at the least, and that is seen here:
    zeus' own look-out is a process for each counter, begun at the first reading, and may be late.
    """

    def __init__(self, file: Any) -> None:
        self._path = file.energy_uj_path
        self._range_uj = float(file.max_energy_range_uj)
        self._last_uj = float(file.last_energy)
        self._wrapped_uj = 0.0

    def millijoules(self) -> float:
        with open(self._path, encoding="ascii") as file:
            now_uj = float(file.read())
        if now_uj < self._last_uj:
            self._wrapped_uj += self._range_uj
        self._last_uj = now_uj
        return (self._wrapped_uj + now_uj) / 1e3


def _nothing() -> float | None:
    return None
