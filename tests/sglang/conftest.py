"""The shared cluster of real servers: started for the first test that asks, stopped at the end."""

from collections.abc import Generator, Iterator

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test tells what its servers said last, and leaves none that hangs to the next."""
    report = yield
    servers = getattr(item, "funcargs", {}).get("cluster")
    if report.when == "call" and report.failed and servers is not None:
        report.sections.append(("the shared servers", servers.looked_after()))
    return report
