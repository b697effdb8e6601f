"""The structs on disk, the domain types and the stored JSON Schema say the same."""

import dataclasses
from pathlib import Path

import msgspec

from conserve_sglang.core.tier import (
    AuthSettings,
    EnergySettings,
    Model,
    ObserveSettings,
    RouterSettings,
    Slo,
    StateSettings,
    Tier,
    TlsSettings,
    WorkerTlsSettings,
)
from conserve_sglang.tiermap.schema import (
    EnergyFile,
    ModelFile,
    SloFile,
    TierFile,
    json_schema_text,
)
from conserve_sglang.tiermap.schema_router import (
    AuthFile,
    ObserveFile,
    RouterFile,
    StateFile,
    TlsFile,
    WorkerTlsFile,
)

STORED = Path(__file__).parents[2] / "tier_maps" / "tier_map.schema.json"
PAIRS: list[tuple[type[msgspec.Struct], type]] = [
    (ModelFile, Model),
    (TierFile, Tier),
    (SloFile, Slo),
    (RouterFile, RouterSettings),
    (ObserveFile, ObserveSettings),
    (AuthFile, AuthSettings),
    (TlsFile, TlsSettings),
    (WorkerTlsFile, WorkerTlsSettings),
    (StateFile, StateSettings),
    (EnergyFile, EnergySettings),
]


def test_the_structs_mirror_the_domain_types() -> None:
    for struct, domain in PAIRS:
        names = {field.name for field in dataclasses.fields(domain)}
        assert set(struct.__struct_fields__) == names


def test_router_defaults_are_those_of_the_core() -> None:
    assert msgspec.to_builtins(RouterFile()) == dataclasses.asdict(RouterSettings())


def test_the_stored_schema_is_fresh() -> None:
    assert STORED.read_text() == json_schema_text(), (
        "run: conserve-sglang tiers schema > tier_maps/tier_map.schema.json"
    )


def test_the_schema_forbids_unknown_fields() -> None:
    schema = msgspec.json.decode(json_schema_text())
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values())
