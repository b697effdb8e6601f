"""Reads a tier map strictly: YAML, then structs, then the domain value with its rules checked."""

import dataclasses
import difflib
import os
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from conserve_sglang.core.errors import TierMapError
from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.tier import (
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
    ModelFile,
    TierFile,
    TierMapFile,
)

_WITH_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"unknown field `(.*)`")
_MISSING = re.compile(r"missing required field `(.*)`")
_INDEX = re.compile(r"\[\d+\]")


def load_tier_map(path: Path) -> TierMap:
    """Read `path`. Raises TierMapError with the file and the field that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TierMapError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TierMapError(f"{path}: is not UTF-8 text: {error.reason}") from error
    return parse_tier_map(text, source=str(path), folder=path.parent)


def parse_tier_map(text: str, *, source: str, folder: Path) -> TierMap:
    """Decode the text of a tier map; `folder` is what a relative model path starts from."""
    raw = _read_yaml(text, source)
    _refuse_other_version(raw, source)
    try:
        decoded = msgspec.convert(raw, TierMapFile)
    except msgspec.ValidationError as error:
        raise TierMapError(f"{source}: {_explain(str(error))}") from error
    tier_map = _to_domain(decoded, source, folder)
    found = [*_policy_problems(tier_map.policy), *problems(tier_map)]
    if found:
        raise TierMapError("\n".join(f"{source}: {problem}" for problem in found))
    return tier_map


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a key given twice is an error instead of the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping whose keys are all different."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, source: str) -> object:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise TierMapError(f"{source}{where}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise TierMapError(f"{source}: not valid YAML: {error}") from error


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


def _explain(message: str) -> str:
    """Turn msgspec's message into "path: what is wrong; what to do"."""
    match = _WITH_PATH.match(message)
    what, path = (match["what"], match["path"] or "") if match else (message, "")
    if unknown := _UNKNOWN.search(what):
        return f"{_join(path, unknown[1])}: unknown field{_did_you_mean(path, unknown[1])}"
    if missing := _MISSING.search(what):
        return f"{_join(path, missing[1])}: missing"
    return f"{path or 'the file'}: {what[0].lower()}{what[1:]}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _did_you_mean(path: str, name: str) -> str:
    part = PARTS.get(_INDEX.sub("[]", path))
    names = part.__struct_fields__ if part else ()
    return _suggest(name, names)


def _suggest(name: str, names: Iterable[str]) -> str:
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _to_domain(decoded: TierMapFile, source: str, folder: Path) -> TierMap:
    return TierMap(
        source=source,
        model=_model(decoded.model, folder),
        tiers=tuple(_tier(tier) for tier in decoded.tiers),
        workers=tuple(worker for tier in decoded.tiers for worker in _workers(tier)),
        policy=PolicyChoice(name=decoded.policy.name, params=decoded.policy.params),
        slo=Slo(**msgspec.structs.asdict(decoded.slo)),
        power_budget_w=decoded.power_budget_w,
        router=msgspec.convert(msgspec.to_builtins(decoded.router), RouterSettings),
        transfer_backend=decoded.transfer_backend,
    )


def _model(model: ModelFile, folder: Path) -> Model:
    """A path that looks like a folder is made absolute; anything else is a name on the hub."""
    if not model.path.startswith((".", "~", "/")):
        return Model(path=model.path, served_name=model.served_name or model.path)
    path = os.path.normpath(folder.absolute() / Path(model.path).expanduser())
    return Model(path=path, served_name=model.served_name or Path(path).name)


def _tier(tier: TierFile) -> Tier:
    values = msgspec.structs.asdict(tier)
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
        )


def _policy_problems(policy: PolicyChoice) -> Iterable[str]:
    """Check the parameters against the policy's own type: conversion ignores unknown keys."""
    params_type = PARAMS.get(policy.name)
    if params_type is None:
        yield f"policy.name: no policy {policy.name!r}{_suggest(policy.name, PARAMS)}"
        return
    known = {field.name for field in dataclasses.fields(params_type)}
    for name in policy.params:
        if name not in known:
            yield f"policy.params.{name}: unknown field{_suggest(name, known)}"
    try:
        msgspec.convert(dict(policy.params), params_type)
    except msgspec.ValidationError as error:
        match = _WITH_PATH.match(str(error))
        path = f".{match['path']}" if match and match["path"] else ""
        yield f"policy.params{path}: {match['what'] if match else error}"
