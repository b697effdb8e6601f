"""One way to equip a worker: its times, its watts, its KV room."""

from dataclasses import dataclass

from conserve_sglang.core.worker import Role
from conserve_sglang.planning.problem import Config
from conserve_sglang.sim import PerfModel, PowerModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A tier's GPUs with `tp` of them to a worker and their knobs set.

    `perf` is the simulator's view of the profile, with its power. `peak_w`: the most that one
    device may draw, its cap or its rated power (`rated_w`). `kv_capacity_tokens`: a worker's pool.
    """

    tier: str
    tp: int
    power_cap_w: float | None
    sm_clock_mhz: int | None
    profile: str
    perf: PerfModel
    peak_w: float
    kv_capacity_tokens: int
    rated_w: float | None = None
    max_running: int = 256
    chunk_tokens: int = 2944

    @property
    def power(self) -> PowerModel:
        """A worker's joules."""
        assert self.perf.power is not None, f"{self.profile} has no watts"
        return self.perf.power

    def config(self, role: Role) -> Config:
        """It, in a role."""
        return Config(
            tier=self.tier,
            role=role,
            tp=self.tp,
            power_cap_w=self.power_cap_w,
            sm_clock_mhz=self.sm_clock_mhz,
            profile=self.profile,
        )
