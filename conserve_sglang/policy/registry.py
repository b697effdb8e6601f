"""The policies by the names they have in tier maps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.policy.api import PlacementPolicy
from conserve_sglang.policy.colocated import Colocated, ColocatedParams
from conserve_sglang.policy.conserve import Conserve, ConserveParams
from conserve_sglang.policy.pack import ConservePack, PackParams
from conserve_sglang.policy.per_turn import (
    AmpdLike,
    AmpdLikeParams,
    CoinFlip,
    CoinFlipParams,
    DynamoLike,
    DynamoLikeParams,
)
from conserve_sglang.policy.pinned import (
    ConserveBlind,
    ConserveBlindParams,
    StaticPpd,
    StaticPpdParams,
)
from conserve_sglang.policy.round_robin import RoundRobin, RoundRobinParams
from conserve_sglang.policy.stock_pd import StockPd, StockPdParams
from conserve_sglang.policy.work_conserving import (
    WorkConserving,
    WorkConservingParams,
    WorkConservingTails,
)


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """How to build a policy: its parameters' type and its factory.

    `only_simulated`: what SGLang's servers would need to run it; None for one they can run.
    """

    params: type[Any]
    build: Callable[[Any], PlacementPolicy]
    only_simulated: str | None = None


MOVES_KV_BACK = "KV sent from a decode server to a prefill server, which SGLang has no path for"
DECODES_ON_PREFILLERS = (
    "a prefill-mode server that decodes, and KV sent there: SGLang's prefill scheduler ends a"
    " request after its first token, so it needs hooks of its own"
)


POLICIES: Mapping[str, PolicyKind] = {
    "conserve": PolicyKind(ConserveParams, Conserve),
    "work-conserving": PolicyKind(WorkConservingParams, WorkConserving),
    "work-conserving-tails": PolicyKind(
        WorkConservingParams, WorkConservingTails, only_simulated=DECODES_ON_PREFILLERS
    ),
    "conserve-pack": PolicyKind(PackParams, ConservePack),
    "conserve-blind": PolicyKind(ConserveBlindParams, ConserveBlind),
    "static-ppd": PolicyKind(StaticPpdParams, StaticPpd),
    "dynamo-like": PolicyKind(DynamoLikeParams, DynamoLike),
    "ampd-like": PolicyKind(AmpdLikeParams, AmpdLike, only_simulated=MOVES_KV_BACK),
    "coin-flip": PolicyKind(CoinFlipParams, CoinFlip, only_simulated=MOVES_KV_BACK),
    "stock-pd": PolicyKind(StockPdParams, StockPd),
    "colocated": PolicyKind(ColocatedParams, Colocated),
    "round-robin": PolicyKind(RoundRobinParams, RoundRobin),
}

PARAMS: Mapping[str, type[Any]] = {name: kind.params for name, kind in POLICIES.items()}


def make_served_policy(choice: PolicyChoice) -> PlacementPolicy:
    """Build a policy for real servers. Raises ConfigError for one they cannot run, too."""
    policy = make_policy(choice)
    needs = POLICIES[choice.name].only_simulated
    if needs is not None:
        able = ", ".join(name for name, kind in POLICIES.items() if kind.only_simulated is None)
        raise ConfigError(
            f"policy {choice.name} is simulated only: it would need {needs}."
            f" Play it with `conserve-sglang simulate`, or serve one of {able}"
        )
    return policy


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
