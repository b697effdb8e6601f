"""Reads a tier map strictly: YAML, then structs, then the domain value with its rules checked."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from conserve_sglang.core.errors import TierMapError
from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.tier import (
    EnergySettings,
    Model,
    PolicyChoice,
    RouterSettings,
    Slo,
    Tier,
    TierMap,
    WorkerPlan,
)
from conserve_sglang.core.worker import Role
from conserve_sglang.policy.registry import PARAMS
from conserve_sglang.tiermap.check import problems
from conserve_sglang.tiermap.schema import (
    PARTS,
    SCHEMA_VERSION,
    EnergyFile,
    ModelFile,
    TierFile,
    TierMapFile,
)
from conserve_sglang.tiermap.schema_router import RouterFile
from conserve_sglang.tiermap.strict import WITH_PATH, explain, read_text, read_yaml, suggest

# Files the router's sections name, relative to the tier map.
_ROUTER_FILES = (
    ("auth", "keys_file"),
    ("state", "path"),
    ("tls", "cert_file"),
    ("tls", "key_file"),
    ("worker_tls", "ca_file"),
)


def load_tier_map(path: Path, *, is_served: bool = True) -> TierMap:
    """Read `path`. Raises TierMapError with the file and the field that is wrong. One that is only
    simulated (`is_served` false) needs none of the keys that guard a deployment."""
    text = read_text(path)
    return parse_tier_map(text, source=str(path), folder=path.parent, is_served=is_served)


def parse_tier_map(text: str, *, source: str, folder: Path, is_served: bool = True) -> TierMap:
    """Decode the text of a tier map; `folder` is what a relative model path starts from."""
    raw = read_yaml(text, source)
    _refuse_other_version(raw, source)
    try:
        decoded = msgspec.convert(raw, TierMapFile)
    except msgspec.ValidationError as error:
        raise TierMapError(f"{source}: {explain(str(error), PARTS)}") from error
    tier_map = _to_domain(decoded, source, folder)
    found = [*policy_problems(tier_map.policy), *problems(tier_map, is_served=is_served)]
    if found:
        raise TierMapError("\n".join(f"{source}: {problem}" for problem in found))
    return tier_map


def _refuse_other_version(raw: object, source: str) -> None:
    """Say what is wrong with the version before the fields of another one confuse the reader."""
    if not isinstance(raw, dict):
        raise TierMapError(f"{source}: a tier map is a mapping that starts with schema_version")
    version = raw.get("schema_version")
    if version is None:
        raise TierMapError(f"{source}: schema_version: missing; write schema_version: 1")
    if version is True or version != SCHEMA_VERSION:
        raise TierMapError(
            f"{source}: schema_version: {version!r} is not one this version reads;"
            f" it reads {SCHEMA_VERSION}"
        )


def _to_domain(decoded: TierMapFile, source: str, folder: Path) -> TierMap:
    return TierMap(
        source=source,
        model=_model(decoded.model, folder),
        tiers=tuple(_tier(tier, folder) for tier in decoded.tiers),
        workers=tuple(worker for tier in decoded.tiers for worker in _workers(tier)),
        policy=PolicyChoice(name=decoded.policy.name, params=decoded.policy.params),
        slo=Slo(**msgspec.structs.asdict(decoded.slo)),
        power_budget_w=decoded.power_budget_w,
        energy_budget_j_per_output_token=decoded.energy_budget_j_per_output_token,
        router=_router(decoded.router, folder),
        transfer_backend=decoded.transfer_backend,
        energy=None if decoded.energy is None else _energy(decoded.energy, folder),
    )


def _router(router: RouterFile, folder: Path) -> RouterSettings:
    values = msgspec.to_builtins(router)
    for section, name in _ROUTER_FILES:
        path = (values[section] or {}).get(name)
        if path is not None:
            values[section][name] = _absolute(path, folder)
    return msgspec.convert(values, RouterSettings)


def _absolute(path: str, folder: Path) -> str:
    return os.path.normpath(folder.absolute() / Path(path).expanduser())


def _model(model: ModelFile, folder: Path) -> Model:
    """A path that looks like a folder is made absolute; anything else is a name on the hub."""
    if not model.path.startswith((".", "~", "/")):
        return Model(path=model.path, served_name=model.served_name or model.path)
    path = _absolute(model.path, folder)
    return Model(path=path, served_name=model.served_name or Path(path).name)


def _energy(energy: EnergyFile, folder: Path) -> EnergySettings:
    values = msgspec.structs.asdict(energy)
    for name in ("recording", "control_log"):
        if values[name] is not None:
            values[name] = _absolute(values[name], folder)
    return EnergySettings(**values)


def _tier(tier: TierFile, folder: Path) -> Tier:
    values = msgspec.structs.asdict(tier)
    if tier.profile is not None and ("/" in tier.profile or tier.profile.endswith(".yaml")):
        values["profile"] = _absolute(tier.profile, folder)
    return Tier(**{**values, "name": TierName(tier.name), "role": Role(tier.role)})


def _workers(tier: TierFile) -> Iterable[WorkerPlan]:
    for index in range(tier.count):
        bootstrap = tier.bootstrap_base_port
        yield WorkerPlan(
            worker_id=WorkerId(f"{tier.name}-{index}"),
            role=Role(tier.role),
            tier=TierName(tier.name),
            host=tier.host,
            port=tier.base_port + index,
            bootstrap_port=None if bootstrap is None else bootstrap + index,
            gpu_ids=tier.gpu_ids[index * tier.tp : (index + 1) * tier.tp],
            max_context_tokens=tier.max_context_tokens,
        )


def policy_problems(policy: PolicyChoice) -> Iterable[str]:
    """Check the parameters against the policy's own type: conversion ignores unknown keys."""
    params_type = PARAMS.get(policy.name)
    if params_type is None:
        yield f"policy.name: no policy {policy.name!r}{suggest(policy.name, PARAMS)}"
        return
    known = {field.name for field in dataclasses.fields(params_type)}
    for name in policy.params:
        if name not in known:
            yield f"policy.params.{name}: unknown field{suggest(name, known)}"
    try:
        msgspec.convert(dict(policy.params), params_type)
    except msgspec.ValidationError as error:
        match = WITH_PATH.match(str(error))
        path = f".{match['path']}" if match and match["path"] else ""
        what = match["what"] if match else str(error)
        yield f"policy.params{path}: {what[:1].lower()}{what[1:]}"
