"""Writes the shipped profiles that are computed: the published A40 and the estimated GPUs.

python -m conserve_sglang.profiles.shipping
"""

from conserve_sglang.profiles.estimator import estimate
from conserve_sglang.profiles.files import save_profile
from conserve_sglang.profiles.hardware import GPUS, MODELS
from conserve_sglang.profiles.profile import Profile
from conserve_sglang.profiles.published import a40_qwen3_0_6b
from conserve_sglang.profiles.registry import shipped_folder

ESTIMATED = ("L4", "L40S", "A100", "H100", "H200")


def computed_profiles() -> tuple[Profile, ...]:
    """What the files must say; measured profiles are not among them."""
    estimated = (estimate(GPUS[gpu], model) for gpu in ESTIMATED for model in MODELS.values())
    return (a40_qwen3_0_6b(300), a40_qwen3_0_6b(200), *estimated)


def main() -> None:
    """Write each into `profiles/`."""
    for profile in computed_profiles():
        save_profile(profile, shipped_folder())


if __name__ == "__main__":
    main()
