"""Which part of a tier map one agent is in charge of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import EnergySettings, Tier, TierMap, WorkerPlan

PHASE_LOG_SUFFIX = ".phases"


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The workers of one host, and where their phase logs are."""

    tier_map: TierMap
    host: str
    workers: tuple[WorkerPlan, ...]
    settings: EnergySettings
    phase_dir: Path

    def tier_of(self, worker: WorkerPlan) -> Tier:
        """The tier of one of its workers."""
        return self.tier_map.tier_of(worker)

    def phase_log(self, worker: WorkerPlan) -> Path:
        """Where a worker's scheduler writes its phase log."""
        return self.phase_dir / f"{worker.worker_id}{PHASE_LOG_SUFFIX}"

    def gpu_ids(self) -> Sequence[int]:
        """Indices of the GPUs that workers of this host use, in order, each once."""
        return sorted({gpu_id for worker in self.workers for gpu_id in worker.gpu_ids})


def part_of(tier_map: TierMap, host: str, phase_dir: Path) -> Here:
    """What the agent of `host` is in charge of. Raises ConfigError if that is nothing."""
    if tier_map.energy is None:
        raise ConfigError(
            f"{tier_map.source}: energy: missing, so no agent is needed. Add energy: {{}} to the"
            " tier map to have energy read"
        )
    workers = tuple(worker for worker in tier_map.workers if worker.host == host)
    if not workers:
        hosts = ", ".join(sorted({worker.host for worker in tier_map.workers}))
        raise ConfigError(f"{tier_map.source}: no worker runs on {host}; its hosts are {hosts}")
    return Here(
        tier_map=tier_map,
        host=host,
        workers=workers,
        settings=tier_map.energy,
        phase_dir=phase_dir,
    )
