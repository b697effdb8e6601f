"""One way to equip a worker: its times, its watts, its KV room."""

from collections.abc import Callable
from dataclasses import dataclass

from conserve_sglang.core.worker import Role
from conserve_sglang.planning.problem import Config
from conserve_sglang.sim import PerfModel

Watts = Callable[[int, int], tuple[float, bool]]
"""Watts of one device by (new, cached) tokens of a prefill, or by (batch, KV tokens) of a decode
step; and whether that lies outside the points it is told from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A tier's GPUs with `tp` of them to a worker and their knobs set.

    `idle_w`, `peak_w`: of one device with a loaded server that has nothing to do, and the most it
    may draw (its cap, or its rated power). `kv_capacity_tokens`: the worker's pool.
    """

    tier: str
    tp: int
    power_cap_w: float | None
    sm_clock_mhz: int | None
    profile: str
    perf: PerfModel
    prefill_w: Watts
    decode_w: Watts
    idle_w: float
    peak_w: float
    kv_capacity_tokens: int
    max_running: int = 256

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
