"""The demo says why it cannot start, at once, instead of waiting for what will never answer."""

import socket
import sys
import time
from pathlib import Path

import pytest
import yaml

from bench.demo import cluster as demo

HARMLESS = "import time; time.sleep(600)"


@pytest.fixture
def ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports the demo asks, moved to free ones; its files go to a folder of their own."""
    probes = [socket.socket() for _ in range(2)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    router, stock = (probe.getsockname()[1] for probe in probes)
    for probe in probes:
        probe.close()
    tier_map = yaml.safe_load(demo.TIER_MAP.read_text())
    tier_map["router"]["port"] = router
    moved = tmp_path / "map.yaml"
    moved.write_text(yaml.safe_dump(tier_map))
    monkeypatch.setattr(demo, "TIER_MAP", moved)
    monkeypatch.setattr(demo, "OUT", tmp_path)
    monkeypatch.setattr(demo, "STOCK_PORT", stock)
    return [router, stock]


@pytest.mark.parametrize("which", [0, 1], ids=["router", "stock"])
def test_a_port_in_use_is_named_before_anything_starts(ports: list[int], which: int) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", ports[which]))
        squatter.listen()
        with pytest.raises(SystemExit, match=f"port {ports[which]}.*in use by process"):
            demo.running_cluster().__enter__()
    assert not list(demo.OUT.glob("demo_*.log"))


@pytest.mark.usefixtures("ports")
def test_a_process_that_ended_is_named_with_the_end_of_its_log() -> None:
    began = time.monotonic()
    good = demo.running_child("stock", [sys.executable, "-S", "-c", HARMLESS], {})
    bad = demo.running_child(
        "launch", [sys.executable, "-S", "-c", "raise SystemExit('port in use')"], {}
    )
    with good as stock, bad as launch, pytest.raises(SystemExit) as caught:
        demo.wait_until_up([demo.local_url(1)], 2, [stock, launch])
    assert "launch ended with exit code 1" in str(caught.value)
    assert "  | port in use" in str(caught.value)
    assert caught.value.code == str(caught.value)  # words, which Python turns into exit code 1
    assert time.monotonic() - began < 30
    assert stock.process.poll() is not None
