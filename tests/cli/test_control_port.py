"""How commands reach a router whose control port speaks TLS and asks for a key."""

import asyncio
import sys
from pathlib import Path

import pytest
import yaml

from tests.fakes.certificates import Authority
from tests.fakes.router_cluster import a_cluster

from .conftest import RunCli


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
        code, out, err = await said(*command, "--tier-map", str(tmp_path / "map.yaml"))
    if certificate == "own":
        assert code == 0, err
        assert "p0" in out
    else:
        assert code == 1
        assert "shows another certificate than" in err


LIST, TOP = ["workers", "list"], ["top", "--once", "--interval", "0.2"]


@pytest.mark.parametrize(
    ("command", "words", "trouble"),
    [
        (LIST, ["--ca", "ca.pem"], ""),
        (TOP, ["--ca", "ca.pem"], ""),
        (LIST, ["--ca", "router.cert.pem"], ""),  # the router's own, and nobody else's
        (LIST, ["--insecure"], ""),
        (LIST, [], "shows a certificate that is not trusted (unable to get local issuer"),
        (TOP, ["--ca", "other.pem"], "Name it, or that of who signed it: --ca FILE"),
    ],
    ids=["authority", "top", "own", "insecure", "system", "other"],
)
async def test_at_a_url_certificates_are_looked_at(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    words: list[str],
    trouble: str,
) -> None:
    monkeypatch.setenv("A_KEY", "hush")
    monkeypatch.chdir(tmp_path)
    Authority(tmp_path, "other")
    async with a_cluster(tls=Authority(tmp_path).issue(), admin_key_env="A_KEY") as cluster:
        url = f"https://127.0.0.1:{cluster.service.control_port}"
        code, out, err = await said(*command, "--url", url, "--key-env", "A_KEY", *words)
    assert trouble in err
    assert (code, "p0" in out) == ((1, False) if trouble else (0, True)), err


async def test_the_name_in_a_certificate_counts(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with a_cluster(tls=authority.issue(host="127.0.0.9")) as cluster:
        url = f"https://127.0.0.1:{cluster.service.control_port}"
        code, _, err = await said("workers", "list", "--url", url, "--ca", str(authority.file))
    assert code == 1
    assert "IP address mismatch" in err


async def test_workers_are_drained_at_a_url_below_a_path() -> None:
    async with a_cluster() as cluster:
        url = f"http://127.0.0.1:{cluster.service.control_port}/"
        assert await said("workers", "drain", "d0", "--url", url) == (0, "d0: drained\n", "")
        code, _, err = await said("workers", "list", "--url", f"{url}no/")
    assert code == 2
    assert "/no/admin/workers" in err


@pytest.mark.parametrize(
    ("words", "said_so"),
    [
        (["--url", "ftp://h"], "--url: ftp://h is no URL"),
        (["--url", "http://h:99999"], "is no URL"),
        (["--url", "http://h", "--insecure"], "--insecure: http://h has no certificate"),
        (["--url", "http://h", "--ca", "x"], "--ca: http://h has no certificate"),
        (["--url", "https://h", "--ca", "x", "--insecure"], "--ca: with --insecure"),
        (["--url", "https://h", "--ca", "/no/such"], "--ca: /no/such holds no certificates"),
        (["--tier-map", "m.yaml", "--ca", "x"], "--ca: the tier map says that already"),
        (["--tier-map", "m.yaml", "--url", "http://h"], "--url: the tier map says that already"),
        (["--tier-map", "m.yaml", "--insecure"], "--insecure: the tier map says that already"),
        (["--url", "https://h", "--key-env", "NO_SUCH"], "the variable NO_SUCH is not set"),
    ],
)
def test_words_that_do_not_fit_together(run_cli: RunCli, words: list[str], said_so: str) -> None:
    for command in (["workers", "list"], ["top", "--once"]):
        ran = run_cli(*command, *words)
        assert (ran.code, ran.out) == (2, "")
        assert said_so in ran.err


async def said(*words: str) -> tuple[int | None, str, str]:
    """Exit code, output and errors of the command."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "conserve-sglang"),
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()
