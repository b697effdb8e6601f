from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.placing import Placing, some_keys
from tests.fakes.router_cluster import Cluster, a_cluster


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """A prefiller and two decoders behind a router."""
    async with a_cluster() as running:
        yield running


@pytest.fixture
async def placing(tmp_path: Path) -> AsyncIterator[Placing]:
    """A trusted client of the same behind API keys."""
    keys, auth = some_keys(tmp_path)
    async with a_cluster(auth=auth) as cluster:
        yield Placing(cluster, keys)
