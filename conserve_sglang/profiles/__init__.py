"""What GPUs take to serve models: versioned profiles in seconds and watts, each with its source."""

from conserve_sglang.profiles.files import load_profile, save_profile
from conserve_sglang.profiles.grid import LeftOut
from conserve_sglang.profiles.profile import (
    SCHEMA_VERSION,
    Accuracy,
    DecodePoint,
    FrontPoint,
    GraphMode,
    PrefillPoint,
    Profile,
    Provenance,
    ProvenanceKind,
    TransferPoint,
)
from conserve_sglang.profiles.registry import (
    open_profile,
    shipped_folder,
    shipped_profile,
    shipped_profiles,
)

__all__ = [
    "SCHEMA_VERSION",
    "Accuracy",
    "DecodePoint",
    "FrontPoint",
    "GraphMode",
    "LeftOut",
    "PrefillPoint",
    "Profile",
    "Provenance",
    "ProvenanceKind",
    "TransferPoint",
    "load_profile",
    "open_profile",
    "save_profile",
    "shipped_folder",
    "shipped_profile",
    "shipped_profiles",
]
