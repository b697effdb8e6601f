"""The shared cluster of real servers: started for the first test that asks, stopped at the end."""

from collections.abc import Iterator

import pytest

from tests.sglang.cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    shared = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        shared.start()
        yield shared
    finally:
        shared.stop()
