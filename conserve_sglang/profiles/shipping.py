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
IN_PAIRS = ("L4", "A40")
"""With the 8B model also two to a worker: one of them has little room for KV."""


def computed_profiles() -> tuple[Profile, ...]:
    """What the files must say; measured profiles are not among them."""
    estimated = (estimate(GPUS[gpu], model) for gpu in ESTIMATED for model in MODELS.values())
    a40 = estimate(GPUS["A40"], MODELS["Qwen/Qwen3-8B"])
    pairs = (estimate(GPUS[gpu], MODELS["Qwen/Qwen3-8B"], tp=2) for gpu in IN_PAIRS)
    return (a40_qwen3_0_6b(300), a40_qwen3_0_6b(200), *estimated, a40, *pairs)


def main() -> None:
    """Write each into `profiles/`."""
    for profile in computed_profiles():
        save_profile(profile, shipped_folder())


if __name__ == "__main__":
    main()
