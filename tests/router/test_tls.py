"""TLS on both sides of the router, with certificates made for the test."""

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from pathlib import Path

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import TlsSettings, WorkerTlsSettings
from conserve_sglang.router.fleet import WorkerState
from conserve_sglang.router.tls import ServerTls, worker_context
from tests.fakes.certificates import Authority, server_context
from tests.fakes.router_cluster import Cluster, a_cluster
from tests.fakes.router_family import a_family
from tests.fakes.router_process import a_router_process
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

CHAT = "/v1/chat/completions"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def secured(authority: Authority) -> AsyncIterator[Cluster]:
    """A cluster that speaks TLS everywhere."""
    async with a_cluster(
        tls=authority.issue(),
        worker_tls=WorkerTlsSettings(ca_file=str(authority.file)),
        worker_context=server_context(authority.issue("worker")),
    ) as cluster:
        cluster.tls = authority.client()
        yield cluster


@pytest.mark.parametrize("stream", [False, True])
async def test_conversation_is_served_over_tls_on_both_sides(
    secured: Cluster, stream: bool
) -> None:
    long = "x" * 150_000
    first = await secured.chat(long[:50_000], stream=stream)
    second = await secured.chat(long[:50_000], "the answer", long[:1000], stream=stream)
    assert (first.status, second.status) == (200, 200)
    assert first.is_whole
    assert len(secured["p0"].turns) == 1
    ended = await secured.request("DELETE", "/v1/conversations/c")
    assert ended.status == 200
    await secured.until(lambda: len(secured["d0"].closed_sessions) == 1)


async def test_connection_is_kept_and_of_a_modern_version(secured: Cluster) -> None:
    client = await secured.connect()
    for _ in range(3):
        client.ask(CHAT, {"messages": [{"role": "user", "content": "hello"}]})
        assert (await client.answer()).status == 200
    assert client.writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
    assert secured["d0"].num_connections + secured["d1"].num_connections <= 6


async def test_client_that_leaves_stops_the_worker(secured: Cluster) -> None:
    for name in ("d0", "d1"):
        secured[name].faults.event_delay_s = 0.3
    client = await secured.connect()
    client.ask(CHAT, {"messages": [{"role": "user", "content": "hello"}], "stream": True})
    await client.head()
    client.close()
    turns = [*secured["d0"].turns, *secured["d1"].turns]
    await secured.until(lambda: turns[0].was_aborted)


async def test_plain_clients_get_no_answer_and_do_no_harm(secured: Cluster) -> None:
    for port in (secured.service.port, secured.service.control_port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"HTTP" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert secured.service.door.num_clients == 0
    assert (await secured.chat("hello")).status == 200


async def test_control_port_speaks_tls_too(secured: Cluster) -> None:
    health = await secured.request("GET", "/health", secured.service.control_port)
    assert health.json()["status"] == "ok"


async def test_new_certificate_is_taken_with_the_reload(
    secured: Cluster, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    old = await shown(secured)
    new = authority.issue()  # into the same files
    caplog.set_level(logging.INFO)
    secured.service.reload_keys()
    told = [line for line in caplog.messages if "certificate" in line]
    assert told == [f"{port} port: the certificate was read again" for port in ("control", "main")]
    taken = await shown(secured)
    assert taken != old
    Path(new.key_file).write_text("no key")
    secured.service.reload_keys()
    assert "the certificate stays as it is" in caplog.text
    assert await shown(secured) == taken


async def expiries(cluster: Cluster) -> dict[str, float]:
    """What `/metrics` says, by listener."""
    name = "conserve_router_tls_certificate_expiry_timestamp_seconds"
    answer = await cluster.request("GET", "/metrics", cluster.service.control_port)
    found = re.findall(name + r'{listener="(\w+)"} (\S+)', answer.body.decode())
    return {listener: float(value) for listener, value in found}


async def test_end_of_the_certificate_is_told_and_follows_the_reload(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    soon, later = (datetime(year, 5, 6, 7, 8, 9, tzinfo=timezone.utc) for year in (2001, 2061))
    tls = authority.issue(until=later)
    async with a_cluster(tls=tls) as cluster:
        cluster.tls = authority.client()
        at_s = later.timestamp()
        assert await expiries(cluster) == {"main": at_s, "control": at_s}
        assert "is valid until" not in caplog.text
        cluster.tls.check_hostname, cluster.tls.verify_mode = False, ssl.CERT_NONE
        authority.issue(until=soon)
        assert await expiries(cluster) == {"main": at_s, "control": at_s}, "not read again yet"
        cluster.service.reload_keys()
        at_s = soon.timestamp()
        assert await expiries(cluster) == {"main": at_s, "control": at_s}
        assert f"{tls.cert_file} is valid until 2001-05-06 07:08 UTC. Renew it" in caplog.text


async def test_fronts_tell_when_their_certificates_end(authority: Authority) -> None:
    later = datetime(2061, 5, 6, tzinfo=timezone.utc)
    async with a_family(tls=authority.issue(until=later)) as family:
        family.tls = authority.client()
        seats = family.many.hub.seats()
        await family.until(lambda: all(seat.metrics is not None for seat in seats))
        at_s = later.timestamp()
        assert await expiries(family) == {"main": at_s, "control": at_s}


async def test_without_tls_no_certificate_is_told_of(cluster: Cluster) -> None:
    assert await expiries(cluster) == {}


async def shown(cluster: Cluster) -> bytes:
    client = await cluster.connect()
    certificate: bytes = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return certificate


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9"])
async def test_worker_that_cannot_show_who_it_is_gets_nothing(
    authority: Authority, tmp_path: Path, host: str
) -> None:
    """Signed by somebody else, or for another host."""
    other = Authority(tmp_path, "other") if host == "127.0.0.1" else authority
    async with a_cluster(
        worker_tls=WorkerTlsSettings(ca_file=str(authority.file)),
        worker_context=server_context(other.issue("worker", host)),
        is_met=False,
    ) as cluster:
        worker = cluster.service.fleet.workers()[0]
        await cluster.until(lambda: "router.worker_tls" in worker.reason)
        assert worker.state is WorkerState.UNKNOWN
        assert (await cluster.chat("hello")).status == 503
        assert not cluster["p0"].probes


async def test_worker_is_taken_as_it_is_where_that_is_asked_for(tmp_path: Path) -> None:
    stranger = server_context(Authority(tmp_path, "other").issue("worker", "10.1.2.3"))
    async with a_cluster(
        worker_tls=WorkerTlsSettings(verify=False), worker_context=stranger
    ) as cluster:
        assert (await cluster.chat("hello")).status == 200


@pytest.mark.parametrize("wrong", ["cert_file", "key_file", "other_key"])
def test_files_that_are_no_certificate_are_an_error(authority: Authority, wrong: str) -> None:
    tls = authority.issue()
    if wrong == "other_key":
        tls = TlsSettings(cert_file=tls.cert_file, key_file=authority.issue("other").key_file)
    else:
        Path(getattr(tls, wrong)).write_text("nothing")
    with pytest.raises(ConfigError, match=r"router\.tls: .*cert\.pem and .*key\.pem"):
        ServerTls(tls)
    with pytest.raises(ConfigError, match=r"router\.tls\.cert_file: /no/such cannot be read"):
        ServerTls(TlsSettings(cert_file="/no/such", key_file="/no/such"))


def test_file_without_authorities_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name, said in (("ca.pem", "in PEM form"), ("missing.pem", "cannot be read")):
        file = tmp_path / name
        with pytest.raises(ConfigError, match=rf"router\.worker_tls\.ca_file: .* {said}"):
            worker_context(WorkerTlsSettings(ca_file=str(file)))


def test_no_version_before_1_2_is_spoken(authority: Authority) -> None:
    for context in (ServerTls(authority.issue()).context, worker_context(WorkerTlsSettings())):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("processes", [1, 2])
async def test_router_as_it_is_started_serves_over_tls(
    authority: Authority, tmp_path: Path, processes: int
) -> None:
    """With its own event loop, in one process and in several."""
    tls, context = authority.issue(), server_context(authority.issue("worker"))
    rendezvous = Rendezvous()
    workers = {
        name: FakeWorker(mode, rendezvous, tls=context)
        for name, mode in (("p", "prefill"), ("d", "decode"))
    }
    async with AsyncExitStack() as stack:
        for worker in workers.values():
            await stack.enter_async_context(worker.serve())
        router = await stack.enter_async_context(
            a_router_process(
                tmp_path,
                workers,
                client_tls=authority.client(),
                tls={"cert_file": tls.cert_file, "key_file": tls.key_file},
                worker_tls={"ca_file": str(authority.file)},
                processes=processes,
                state=None,
            )
        )
        for stream in (False, True):
            answer = await router.chat("x" * 20_000, name=f"c{stream}", stream=stream)
            assert answer.status == 200
            assert answer.is_whole
