"""What a tier map asks of the power controller."""

from conserve_sglang.core.tier import TierMap
from conserve_sglang.power.control import ControlSettings
from conserve_sglang.power.energy_target import EnergySettings


def control_settings(tier_map: TierMap) -> ControlSettings:
    """The budgets and SLOs of a tier map, with the law's own constants."""
    target = tier_map.energy_budget_j_per_output_token
    return ControlSettings(
        power_budget_w=tier_map.power_budget_w,
        energy=None if target is None else EnergySettings(j_per_output_token=target),
        ttfet_slo_s=tier_map.slo.ttfet_s,
        tbt_slo_s=tier_map.slo.last_turn_tbt_s,
    )
