"""NVIDIA's library, as a stand-in."""

from pathlib import Path

import pytest

from tests.energy.standin import build


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with it."""
    return build(tmp_path_factory.mktemp("nvml"))
