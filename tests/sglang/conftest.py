"""The shared cluster of real servers: started for the first test that asks, stopped at the end."""

from collections.abc import Generator, Iterator

import pytest

from tests.sglang.cluster import Cluster
from tests.sglang.rule import BrokenRule


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What fails on real servers is run once more, on servers that were looked after.

    Their KV transfers were once seen to hang for good, at random. The first failure is shown in
    full, and each test that was run again is listed at the end: a fault of ours shows there, too.
    A turn that was lost, cut or repeated under a fault is never played again.
    """
    for item in items:
        if item.get_closest_marker("sglang") is not None:
            item.add_marker(pytest.mark.flaky(reruns=1, rerun_except=BrokenRule))
