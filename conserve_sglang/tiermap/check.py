"""The rules of a tier map that reach across fields. Pure: a value in, problems out."""

from collections import Counter
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from conserve_sglang.core.health import HealthSettings
from conserve_sglang.core.tier import OWNED_FLAGS, StateSettings, Tier, TierMap
from conserve_sglang.core.worker import Role
from conserve_sglang.policy import POLICIES
from conserve_sglang.tiermap.secrets import password_in

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0"})
_BOTH = ((frozenset({Role.PREFILL}), "a prefill tier"), (frozenset({Role.DECODE}), "a decode tier"))
_NEEDED: dict[str, tuple[tuple[frozenset[Role], str], ...]] = {
    **{name: _BOTH for name in POLICIES if name not in {"colocated", "round-robin"}},
    "work-conserving": (
        (frozenset({Role.PREFILL, Role.MIXED}), "a prefill or a mixed tier"),
        (frozenset({Role.DECODE, Role.MIXED}), "a decode or a mixed tier"),
    ),
    "colocated": ((frozenset({Role.MIXED, Role.DECODE}), "a mixed or a decode tier"),),
}


def problems(tier_map: TierMap, *, is_served: bool = True) -> Iterator[str]:
    """Everything wrong with a decoded tier map, each as "path: what; what to do". If it is only
    simulated, nobody can reach its control port and its agents, and no key is missed."""
    yield from _names(tier_map.tiers)
    for index, tier in enumerate(tier_map.tiers):
        for problem in _tier(tier):
            yield f"tiers[{index}].{problem}"
    yield from port_problems(tier_map)
    yield from _health(tier_map.router.health)
    yield from _shared_gpus(tier_map)
    yield from _roles(tier_map)
    yield from _state(tier_map.router.state)
    yield from _keys(tier_map)
    if is_served:
        yield from _unlocked(tier_map)
    yield from _energy(tier_map)
    yield from _budgets(tier_map)


def _names(tiers: Iterable[Tier]) -> Iterator[str]:
    first_at: dict[str, int] = {}
    for index, tier in enumerate(tiers):
        if tier.name in first_at:
            yield f"tiers[{index}].name: {tier.name!r} is tiers[{first_at[tier.name]}]'s already"
        first_at.setdefault(tier.name, index)


def _tier(tier: Tier) -> Iterator[str]:
    needed = 0 if tier.is_cpu else tier.count * tier.tp
    if len(tier.gpu_ids) != needed:
        rule = "a CPU tier takes none" if tier.is_cpu else f"count x tp = {needed} are needed"
        yield f"gpu_ids: {len(tier.gpu_ids)} given; {rule}"
    for gpu_id, times in Counter(tier.gpu_ids).items():
        if times > 1 and not tier.share_gpus:
            yield f"gpu_ids: GPU {gpu_id} stands here {times} times; share_gpus: true allows it"
    if tier.role is Role.PREFILL and tier.bootstrap_base_port is None:
        yield "bootstrap_base_port: missing; a prefill tier needs one"
    if tier.role is not Role.PREFILL and tier.bootstrap_base_port is not None:
        yield f"bootstrap_base_port: a {tier.role.value} tier has none; remove it"
    if tier.role is Role.PREFILL and tier.max_context_tokens is not None:
        yield "max_context_tokens: a prefill tier has none; set it where conversations stay"
    for name in ("base_port", "bootstrap_base_port"):
        if (getattr(tier, name) or 0) + tier.count - 1 > 65535:
            yield f"{name}: its {tier.count} workers would pass port 65535"
    if tier.is_cpu and (tier.power_cap_w is not None or tier.sm_clock_mhz is not None):
        yield "gpu: a CPU tier has neither power_cap_w nor sm_clock_mhz"
    yield from _flags(tier)


def _flags(tier: Tier) -> Iterator[str]:
    for name in tier.sglang_flags:
        if name != name.strip() or name.startswith("-"):
            yield f"sglang_flags.{name}: write it without leading dashes or spaces"
        elif "_" in name:
            yield f"sglang_flags.{name}: write it as {name.replace('_', '-')}"
        elif name in OWNED_FLAGS:
            yield f"sglang_flags.{name}: set by {OWNED_FLAGS[name]}; remove it here"


def _health(health: HealthSettings) -> Iterator[str]:
    breaker = health.breaker
    if breaker.cooldown_s > breaker.max_cooldown_s:
        yield "router.health.breaker.max_cooldown_s: less than cooldown_s; raise it"


def port_problems(tier_map: TierMap) -> Iterator[str]:
    """Two listeners on one port of one host. The router counts on every loopback host."""
    taken: dict[tuple[str, int], str] = {}
    for host, port, owner in _listeners(tier_map):
        key = ("this machine" if host in _LOOPBACK else host, port)
        if key in taken:
            yield f"{owner}: port {port} on {host} is {taken[key]}'s already"
        taken.setdefault(key, owner)


def _listeners(tier_map: TierMap) -> Iterator[tuple[str, int, str]]:
    router = tier_map.router
    yield router.host, router.port, "router.port"
    yield router.control_host, router.control_port, "router.control_port"
    if tier_map.energy is not None:
        for host in sorted({worker.host for worker in tier_map.workers}):
            yield host, tier_map.energy.agent_port, f"energy.agent_port (the agent of {host})"
    for worker in tier_map.workers:
        yield worker.host, worker.port, f"worker {worker.worker_id}"
        if worker.bootstrap_port is not None:
            yield worker.host, worker.bootstrap_port, f"bootstrap server of {worker.worker_id}"


def _shared_gpus(tier_map: TierMap) -> Iterator[str]:
    """A GPU named by two tiers is most often a slip; both have to say that it is meant."""
    user_of: dict[tuple[str, int], int] = {}
    for index, tier in enumerate(tier_map.tiers):
        for gpu_id in sorted(set(tier.gpu_ids)):
            other = user_of.setdefault((tier.host, gpu_id), index)
            if other == index or (tier.share_gpus and tier_map.tiers[other].share_gpus):
                continue
            yield (
                f"tiers[{index}].gpu_ids: GPU {gpu_id} of {tier.host} is used by"
                f" tiers[{other}] ({tier_map.tiers[other].name}) too;"
                " share_gpus: true in both tiers allows it"
            )


def _roles(tier_map: TierMap) -> Iterator[str]:
    present = {tier.role for tier in tier_map.tiers}
    name = tier_map.policy.name
    for roles, what in _NEEDED.get(name, ()):
        if not roles & present:
            yield f"tiers: the policy {name} needs {what}, and there is none"
    if (
        name == "round-robin"
        and Role.MIXED not in present
        and not ({Role.PREFILL, Role.DECODE} <= present)
    ):
        yield "tiers: the policy round-robin needs mixed tiers, or both prefill and decode tiers"


def _unlocked(tier_map: TierMap) -> Iterator[str]:
    """What would listen for others and ask for no key."""
    router = tier_map.router
    if router.admin_key_env is not None:
        return
    if not is_loopback(router.control_host):
        yield (
            f"router.control_host: {router.control_host} is no loopback address, and the control"
            " port asks for no key: anybody could take workers out. Set router.admin_key_env, or"
            " use 127.0.0.1"
        )
    far = unguarded_host(tier_map)
    if tier_map.energy is not None and far is not None:
        yield (
            f"energy: its agent on {far} would ask for no key, and it can set power limits."
            " Set router.admin_key_env, or leave energy out"
        )


def unguarded_host(tier_map: TierMap) -> str | None:
    """A host whose agent others could reach without a key; None: there is none."""
    if tier_map.router.admin_key_env is not None:
        return None
    hosts = (worker.host for worker in tier_map.workers)
    return next((host for host in hosts if not is_loopback(host)), None)


def _state(state: StateSettings | None) -> Iterator[str]:
    if state is None:
        return
    if state.path is not None and state.redis is not None:
        yield "router.state: path and redis are both set; remove one"
    if state.redis is None:
        if state.redis_password_env is not None:
            yield "router.state.redis_password_env: there is no Redis; set redis, or remove it"
        return
    try:
        password = password_in(state.redis)
        urlsplit(state.redis).port  # noqa: B018 - it is looked at only here
    except ValueError:  # whose text may quote a part of the password
        yield (
            "router.state.redis: not a URL like redis://HOST:6379/0. If a password with special"
            " characters is in it, name it in redis_password_env instead"
        )
        return
    if password is not None and state.redis_password_env is not None:
        yield "router.state.redis: take the password out of it, redis_password_env names one"


def _keys(tier_map: TierMap) -> Iterator[str]:
    router = tier_map.router
    if router.worker_api_key_env is not None:
        for index, tier in enumerate(tier_map.tiers):
            for name in ("api-key", "config"):
                if name in tier.sglang_flags:
                    yield (
                        f"tiers[{index}].sglang_flags.{name}: set by router.worker_api_key_env;"
                        " remove one of the two"
                    )
    for index, tier in enumerate(tier_map.tiers):
        if tier.sglang_flags.get("ssl-certfile") and router.worker_tls is None:
            yield (
                f"tiers[{index}].sglang_flags.ssl-certfile: these workers speak TLS, and the"
                " router would not; set router.worker_tls"
            )


def _energy(tier_map: TierMap) -> Iterator[str]:
    energy = tier_map.energy
    if energy is None:
        return
    if (energy.meter == "replay") != (energy.recording is not None):
        yield "energy.recording: the replay meter needs one, and no other meter has one"
    if energy.meter == "nvml" and all(tier.is_cpu for tier in tier_map.tiers):
        yield "energy.meter: nvml reads GPUs, and all tiers run on the CPU; use auto or model"
    if energy.meter == "model":
        for index, tier in enumerate(tier_map.tiers):
            if tier.profile is None:
                yield f"tiers[{index}].profile: missing; energy.meter: model is made from it"


def _budgets(tier_map: TierMap) -> Iterator[str]:
    if tier_map.energy_budget_j_per_output_token is not None and tier_map.energy is None:
        yield (
            "energy_budget_j_per_output_token: needs energy to be read; add energy: {} to the tier"
            " map"
        )
    if not tier_map.has_budget or tier_map.energy is None:
        return
    state = tier_map.router.state
    if state is not None and state.redis is not None:
        yield (
            "router.state.redis: replicas would each move the caps; a deployment under a power or"
            " energy budget has one router"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    return host in ("localhost", "::1") or host.startswith("127.")
