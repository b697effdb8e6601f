"""The policies by the names they have in tier maps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.policy.api import PlacementPolicy
from conserve_sglang.policy.colocated import Colocated, ColocatedParams
from conserve_sglang.policy.conserve import Conserve, ConserveParams
from conserve_sglang.policy.round_robin import RoundRobin, RoundRobinParams
from conserve_sglang.policy.stock_pd import StockPd, StockPdParams


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """How to build a policy: its parameters' type and its factory."""

    params: type[Any]
    build: Callable[[Any], PlacementPolicy]


POLICIES: Mapping[str, PolicyKind] = {
    "conserve": PolicyKind(ConserveParams, Conserve),
    "stock-pd": PolicyKind(StockPdParams, StockPd),
    "colocated": PolicyKind(ColocatedParams, Colocated),
    "round-robin": PolicyKind(RoundRobinParams, RoundRobin),
}

PARAMS: Mapping[str, type[Any]] = {name: kind.params for name, kind in POLICIES.items()}


def make_policy(choice: PolicyChoice) -> PlacementPolicy:
    """Build the policy a tier map names. Raises ConfigError for an unknown name or parameter."""
    kind = POLICIES.get(choice.name)
    if kind is None:
        raise ConfigError(f"policy {choice.name!r} is unknown; use one of {', '.join(POLICIES)}")
    known = {field.name for field in fields(kind.params)}
    for name in choice.params:
        if name not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"policy {choice.name}: unknown parameter {name!r}; it has {takes}")
    try:
        params = kind.params(**choice.params)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"policy {choice.name}: {error}") from error
    return kind.build(params)
