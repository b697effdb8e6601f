"""The profiles that come with this package, in the checkout's or the wheel's `profiles/`."""

from functools import lru_cache
from importlib import import_module
from pathlib import Path

from conserve_sglang.core.errors import ProfileError
from conserve_sglang.profiles.files import load_profile
from conserve_sglang.profiles.profile import Profile

PACKAGE = "conserve_profiles"


def shipped_folder() -> Path:
    """Where they lie: in a checkout its `profiles/`, else the installed package's."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").exists():
        return checkout / "profiles"
    package = import_module(PACKAGE)
    assert package.__file__ is not None
    return Path(package.__file__).parent


def shipped_profiles() -> tuple[str, ...]:
    """Their names, in alphabetical order."""
    return tuple(sorted(path.stem for path in shipped_folder().glob("*.yaml")))


@lru_cache(maxsize=64)
def shipped_profile(name: str) -> Profile:
    """One of them. ProfileError lists the names if there is none of that name."""
    if name not in shipped_profiles():
        known = ", ".join(shipped_profiles())
        raise ProfileError(f"no profile {name!r} comes with this package; there are: {known}")
    return load_profile(shipped_folder() / f"{name}.yaml")


def open_profile(name_or_path: str) -> Profile:
    """A profile by the name of a shipped one, or by the path of its YAML file."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return load_profile(path)
    return shipped_profile(name_or_path)
