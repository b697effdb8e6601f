"""A worker that joins a running deployment: held to the same rules as those of the tier map."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

import msgspec

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.tier import Tier, TierMap, WorkerPlan
from conserve_sglang.core.worker import Role
from conserve_sglang.tiermap.check import port_problems
from conserve_sglang.tiermap.fields import Name, Port


class WorkerFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker as it is written. Role and host are by default those of its tier."""

    id: Name
    tier: Name
    port: Port
    role: Literal["prefill", "decode", "mixed"] | None = None
    host: str | None = None
    bootstrap_port: Port | None = None


def read_newcomer(body: bytes, tier_map: TierMap, present: Iterable[WorkerPlan]) -> WorkerPlan:
    """The plan of a worker that joins those present; ConfigError names everything wrong."""
    try:
        written = msgspec.json.decode(body, type=WorkerFile)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{error}. A worker is written as"
            ' {"id": "d-9", "tier": "d", "port": 30109}, where needed with "host",'
            ' "bootstrap_port" and "role".'
        ) from error
    tiers = {str(tier.name): tier for tier in tier_map.tiers}
    tier = tiers.get(written.tier)
    if tier is None:
        raise ConfigError(
            f"tier: the tier map has no tier {written.tier!r}; it has {', '.join(tiers)}."
        )
    plan = WorkerPlan(
        worker_id=WorkerId(written.id),
        role=tier.role if written.role is None else Role(written.role),
        tier=TierName(written.tier),
        host=tier.host if written.host is None else written.host,
        port=written.port,
        bootstrap_port=written.bootstrap_port,
        gpu_ids=(),
        max_context_tokens=tier.max_context_tokens,
    )
    others = [each for each in present if each.worker_id != plan.worker_id]
    found = [*_problems(plan, tier), *_taken_ports(plan, replace(tier_map, workers=tuple(others)))]
    if found:
        raise ConfigError("; ".join(found) + ".")
    return plan


def _problems(plan: WorkerPlan, tier: Tier) -> Iterator[str]:
    if plan.role is not tier.role:
        yield f"role: the tier {tier.name} is a {tier.role.value} tier; leave the role out"
    if not plan.host:
        yield "host: empty; leave it out for the tier's"
    if plan.role is Role.PREFILL and plan.bootstrap_port is None:
        yield "bootstrap_port: missing; a prefill worker needs one"
    if plan.role is not Role.PREFILL and plan.bootstrap_port is not None:
        yield f"bootstrap_port: a {plan.role.value} worker has none; remove it"


def _taken_ports(plan: WorkerPlan, there: TierMap) -> Iterator[str]:
    before = set(port_problems(there))
    after = port_problems(replace(there, workers=(*there.workers, plan)))
    return (problem for problem in after if problem not in before)
