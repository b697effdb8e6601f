"""A tier map as something to simulate."""

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import PolicyChoice, Tier, TierMap
from conserve_sglang.core.worker import WorkerSpec
from conserve_sglang.dispatch import dispatch_settings
from conserve_sglang.policy import make_policy
from conserve_sglang.sim.driver import Deployment
from conserve_sglang.sim.perf_model import PerfModel
from conserve_sglang.sim.view import A40_QWEN3_0_6B, A40_QWEN3_0_6B_200W
from conserve_sglang.sim.worker_spec import SimWorkerSpec

CAPPED_W = 200
DEFAULT_CHUNK_TOKENS = 2944
"""The paper's batched tokens a step; a tier's `chunked-prefill-size` takes its place."""


def deployment_of(
    tier_map: TierMap, perf: PerfModel, policy: PolicyChoice, kv_capacity_tokens: int
) -> Deployment:
    """Every worker of a tier map, with the unit costs of `unit_costs_of` its tier.

    A tier's SGLang flags `max-total-tokens`, `chunked-prefill-size` and `max-running-requests`
    count; without the first, a worker's pool holds `kv_capacity_tokens`.
    """
    workers = tuple(
        SimWorkerSpec(
            spec=WorkerSpec(
                worker_id=worker.worker_id,
                role=worker.role,
                tier=worker.tier,
                kv_capacity_tokens=_flag(tier, "max-total-tokens", kv_capacity_tokens),
            ),
            perf=unit_costs_of(tier, perf),
            chunk_tokens=_flag(tier, "chunked-prefill-size", DEFAULT_CHUNK_TOKENS),
            max_running=_flag(tier, "max-running-requests", 256),
        )
        for worker in tier_map.workers
        for tier in (tier_map.tier_of(worker),)
    )
    settings = dispatch_settings(tier_map.router)
    return Deployment(workers=workers, policy=make_policy(policy), settings=settings)


def unit_costs_of(tier: Tier, perf: PerfModel) -> PerfModel:
    """`perf`, except for an A40 capped at 200 W if `perf` is the uncapped A40: other GPUs, caps,
    clocks and tensor parallelism are not modelled yet."""
    is_capped_a40 = tier.gpu == "A40" and tier.power_cap_w == CAPPED_W
    return A40_QWEN3_0_6B_200W if is_capped_a40 and perf is A40_QWEN3_0_6B else perf


def _flag(tier: Tier, name: str, default: int) -> int:
    value = tier.sglang_flags.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"tier {tier.name}: {name}: {value!r} is not a positive number")
    return value
