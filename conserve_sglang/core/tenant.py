"""Whose conversations: a tenant is one customer of the deployment, told by its API keys."""

from dataclasses import dataclass

from conserve_sglang.core.ids import TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One tenant. `weight` is its share of what is scarce, relative to the others' weights.

    `may_place` says that its clients are trusted to reach workers by themselves.
    """

    tenant_id: TenantId
    weight: float = 1.0
    may_place: bool = False


DEFAULT_TENANT = Tenant(tenant_id=TenantId("default"))
"""Whom everything belongs to while no API keys are set."""
