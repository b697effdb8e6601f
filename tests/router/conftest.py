from collections.abc import AsyncIterator

import pytest

from tests.fakes.router_cluster import Cluster, a_cluster


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """A prefiller and two decoders behind a router."""
    async with a_cluster() as running:
        yield running
