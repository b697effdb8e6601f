"""What a tier map says of profiles and recordings, held against the files it names. Only reads."""

import time
from collections.abc import Iterator
from pathlib import Path

from conserve_sglang.core.errors import ConfigError, MeterError, ProfileError
from conserve_sglang.core.tier import Tier, TierMap
from conserve_sglang.energy.replay import ReplayMeter
from conserve_sglang.profiles import Profile, open_profile


def check_energy_files(tier_map: TierMap) -> None:
    """Raise ConfigError for a profile or a recording that is missing or cannot be read."""
    for _ in _profiles(tier_map):
        pass
    recording = None if tier_map.energy is None else tier_map.energy.recording
    if recording is not None:
        try:
            ReplayMeter.from_file(Path(recording), time.monotonic)
        except MeterError as error:
            raise ConfigError(f"{tier_map.source}: energy.recording: {error}") from error


def energy_notices(tier_map: TierMap) -> tuple[str, ...]:
    """Profiles of another GPU or another model than the tier's. Raises ConfigError as above."""
    return tuple(
        f"{where}: {profile.name} is of {what}, and the tier has {own}"
        for where, tier, profile in _profiles(tier_map)
        for what, own in _differences(tier_map, tier, profile)
    )


def _profiles(tier_map: TierMap) -> Iterator[tuple[str, Tier, Profile]]:
    for index, tier in enumerate(tier_map.tiers):
        if tier.profile is not None:
            where = f"tiers[{index}].profile"
            try:
                yield where, tier, open_profile(tier.profile)
            except ProfileError as error:
                raise ConfigError(f"{tier_map.source}: {where}: {error}") from error


def _differences(tier_map: TierMap, tier: Tier, profile: Profile) -> Iterator[tuple[str, str]]:
    gpus = profile.gpu.casefold(), tier.gpu.casefold()
    if not (gpus[0] in gpus[1] or gpus[1] in gpus[0]):  # A100 and A100-SXM4-80GB
        yield f"GPU {profile.gpu}", tier.gpu
    served = (tier_map.model.path, tier_map.model.served_name)
    if _plain(profile.model) not in {_plain(name) for name in served}:
        yield f"model {profile.model}", tier_map.model.path


def _plain(model: str) -> str:
    return Path(model).name.casefold()
