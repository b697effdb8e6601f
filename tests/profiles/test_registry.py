"""The shipped profiles are found by name."""

from pathlib import Path

import pytest

from conserve_sglang.core.errors import ProfileError
from conserve_sglang.profiles import (
    open_profile,
    save_profile,
    shipped_folder,
    shipped_profile,
    shipped_profiles,
)
from tests.profiles.builders import a_profile


def test_every_file_is_shipped_under_its_name_and_can_be_read() -> None:
    names = shipped_profiles()
    assert names == tuple(sorted(names))
    assert {path.stem for path in shipped_folder().glob("*.csv")} == set(names)
    for name in names:
        assert shipped_profile(name).name == name


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ProfileError, match="no profile 'a41' comes with this package"):
        shipped_profile("a41")


def test_a_path_opens_a_file_and_a_name_a_shipped_one(tmp_path: Path) -> None:
    path = save_profile(a_profile(), tmp_path)
    assert open_profile(str(path)) == a_profile()
    for name in shipped_profiles():
        assert open_profile(name) is shipped_profile(name)
    with pytest.raises(ProfileError, match="no profile"):
        open_profile("a41")
