"""How commands reach a router whose control port speaks TLS and asks for a key."""

import asyncio
import sys
from pathlib import Path

import pytest
import yaml

from tests.fakes.certificates import Authority
from tests.fakes.router_cluster import a_cluster


@pytest.mark.parametrize("command", [["workers", "list"], ["top", "--once", "--interval", "0.2"]])
@pytest.mark.parametrize("certificate", ["own", "other"])
async def test_key_is_shown_over_tls_to_the_routers_own_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: str, command: list[str]
) -> None:
    monkeypatch.setenv("A_KEY", "hush")
    authority = Authority(tmp_path)
    named, shown = authority.issue("named"), authority.issue("shown")
    tls = named if certificate == "own" else shown
    async with a_cluster(tls=tls, admin_key_env="A_KEY") as cluster:
        tiers = [
            {
                "name": "p",
                "role": "prefill",
                "gpu": "cpu",
                "base_port": 1,
                "bootstrap_base_port": 2,
            },
            {"name": "d", "role": "decode", "gpu": "cpu", "base_port": 3},
        ]
        router = {
            "control_port": cluster.service.control_port,
            "admin_key_env": "A_KEY",
            "tls": {"cert_file": named.cert_file, "key_file": named.key_file},
        }
        tier_map = {"schema_version": 1, "model": {"path": "m"}, "tiers": tiers, "router": router}
        (tmp_path / "map.yaml").write_text(yaml.safe_dump(tier_map))
        listing = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "conserve-sglang"),
            *command,
            "--tier-map",
            str(tmp_path / "map.yaml"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(listing.communicate(), 60)
    if certificate == "own":
        assert listing.returncode == 0, err
        assert b"p0" in out
    else:
        assert listing.returncode == 1
        assert b"shows another certificate than" in err
