"""What is logged of turns, and what never is."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.tier import AuthSettings, Overload
from conserve_sglang.router.ports import PROBES
from conserve_sglang.telemetry.logs import ACCESS_LOGGER, JsonFormatter
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.router_cluster import a_cluster

SECRET = "the-words-of-the-prompt"


@pytest.fixture
def with_access_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    with caplog.at_level(logging.INFO, ACCESS_LOGGER):
        yield


def turns(caplog: pytest.LogCaptureFixture, event: str = "turn") -> list[dict[str, Any]]:
    records = [record for record in caplog.records if record.name == ACCESS_LOGGER]
    return [each.__dict__["fields"] for each in records if each.__dict__["event"] == event]


def requests(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return turns(caplog, "request")


@pytest.mark.usefixtures("with_access_log")
async def test_each_turn_has_one_line_with_where_it_ran(caplog: pytest.LogCaptureFixture) -> None:
    async with a_cluster() as cluster:
        await cluster.chat("hello", stream=True)
        await cluster.chat("hello", "the answer", "more")
    first, second = turns(caplog)
    assert first["outcome"] == "answered"
    assert (first["turn"], first["prefiller"], first["is_stream"]) == (1, "p0", True)
    assert (second["turn"], second["prefiller"], second["reason"]) == (2, None, "pinned")
    assert second["output_tokens"] == len("the answer")
    assert second["cached_tokens"] > 0
    assert 0 < second["first_byte_s"] <= second["total_s"]
    assert first["conversation"] == second["conversation"]
    assert first["path"] == first["endpoint"] == "/v1/chat/completions"
    assert (first["status"], first["code"], first["tenant"]) == (200, None, "default")
    assert (first["attempts"], first["retries"], first["continuations"]) == (1, 0, 0)
    assert first["peer"].startswith("127.0.0.1:")
    assert first["request_id"].startswith("req_")
    assert first["turn_id"] != second["turn_id"]
    assert not requests(caplog)


@pytest.mark.usefixtures("with_access_log")
async def test_a_turn_that_is_not_answered_has_its_line_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_cluster(max_attempts=1) as cluster:
        cluster["p0"].faults.statuses = [500]
        assert (await cluster.chat("hello")).status == 502
    (line,) = turns(caplog)
    assert line["outcome"] == "rejected"
    assert (line["status"], line["code"], line["attempts"]) == (502, "workers_failed", 1)
    assert not requests(caplog)
    assert line["first_byte_s"] is None
    assert line["output_tokens"] is None
    (failed,) = [r for r in caplog.records if getattr(r, "event", "") == "turn_failed"]
    assert failed.__dict__["fields"]["cause"] == "prefiller_failed"
    assert failed.__dict__["fields"]["why"] == "it answered 500"


@pytest.mark.usefixtures("with_access_log")
async def test_retries_interruptions_and_continuations_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_cluster() as cluster:
        for name in ("d0", "d1"):
            cluster[name].answer = "one two three four"
        cluster["p0"].faults.statuses = [500]
        await cluster.chat("hello")
        cluster["d0"].faults.cut_after_events = cluster["d1"].faults.cut_after_events = 2
        broken = await cluster.chat("other", stream=True, name="other")
    retried, interrupted = turns(caplog)
    assert (retried["outcome"], retried["attempts"], retried["retries"]) == ("answered", 2, 1)
    assert interrupted["interruptions"] >= 1
    assert interrupted["attempts"] == 1 + interrupted["retries"] + interrupted["interruptions"]
    if b"error" in broken.body:
        assert (interrupted["status"], interrupted["code"]) == (200, "answer_broken_off")
    else:
        assert interrupted["continuations"] >= 1


@pytest.mark.usefixtures("with_access_log")
async def test_other_apis_are_called_by_their_paths(caplog: pytest.LogCaptureFixture) -> None:
    async with a_cluster() as cluster:
        said = [{"role": "user", "content": "hello"}]
        body = {"model": "tiny", "max_tokens": 5, "messages": said}
        await cluster.post("/v1/messages", body)
        await cluster.post("/v1/responses", {"model": "tiny", "input": "hello"})
    assert [line["path"] for line in turns(caplog)] == ["/v1/messages", "/v1/responses"]


@pytest.mark.usefixtures("with_access_log")
async def test_requests_that_are_no_turns_have_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async with a_cluster() as cluster:
        given = {"x-request-id": "mine"}
        await cluster.request("GET", "/nothing?key=csk-12345678", headers=given)
        await cluster.post("/v1/chat/completions", {"messages": [], "stream": SECRET}, given)
        await cluster.post("/v1/chat/completions", b"x" * 300_000)
        client = await cluster.connect()
        client.send(b"GET /\x1b[31m HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.head())[0] in (400, 404)
        await cluster.request("GET", "/v1/models")
        await cluster.request("DELETE", f"/v1/conversations/{SECRET}")
        await cluster.request("GET", "/health")
    unknown, bad, large, _, models, ended = requests(caplog)
    assert (unknown["method"], unknown["path"], unknown["status"]) == ("GET", "/nothing", 404)
    assert (unknown["code"], unknown["tenant"]) == ("unknown_path", "default")
    assert unknown["request_id"] == "mine"
    assert unknown["peer"].startswith("127.0.0.1:")
    assert (bad["path"], bad["status"]) == ("/v1/chat/completions", 400)
    assert (large["method"], large["status"]) == ("POST", 413)
    assert (large["code"], large["tenant"]) == ("body_too_large", None)
    assert (models["status"], models["code"]) == (200, None)
    assert ended["path"] == "/v1/conversations/{id}"
    assert (ended["status"], ended["code"]) == (404, "conversation_not_found")
    assert not turns(caplog)
    assert SECRET not in caplog.text
    assert "csk-12345678" not in caplog.text


async def test_probes_are_told_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, ACCESS_LOGGER)
    async with a_cluster() as cluster:
        for path in PROBES:
            await cluster.request("GET", path.decode())
    assert [line["path"].encode() for line in requests(caplog)] == list(PROBES)
    assert {each.levelname for each in caplog.records if each.name == ACCESS_LOGGER} == {"DEBUG"}


@pytest.mark.usefixtures("with_access_log")
async def test_strangers_and_tenants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = new_key(tmp_path / "keys.yaml", "team")
    async with a_cluster(auth=AuthSettings(keys_file=str(tmp_path / "keys.yaml"))) as cluster:
        client = await cluster.connect()
        wrong, right = ({"authorization": f"Bearer {each}"} for each in ("wrong", key))
        for path, headers in (("/nothing", right), ("/v1/messages", wrong), ("/nothing", right)):
            client.ask(path, {}, headers)
            await client.answer()
    known, stranger, again = requests(caplog)
    assert (known["tenant"], again["tenant"]) == ("team", "team")
    assert (stranger["status"], stranger["code"]) == (401, "invalid_api_key")
    assert stranger["tenant"] is None
    assert key not in caplog.text


@pytest.mark.usefixtures("with_access_log")
async def test_connections_too_many_have_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async with a_cluster(overload=Overload(max_connections=1)) as cluster:
        await cluster.connect()
        assert (await (await cluster.connect()).answer()).status == 503
    (line,) = requests(caplog)
    assert (line["status"], line["code"]) == (503, "too_many_connections")


async def test_no_word_of_prompts_names_or_headers_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with a_cluster(max_attempts=2) as cluster:
        cluster["d0"].error_text = f"cannot serve {SECRET}"
        cluster["p0"].error_text = f"cannot serve {SECRET}"
        for status in (400, 500):
            cluster["d0"].faults.statuses = [status]
            cluster["p0"].faults.statuses = [status]
            headers = {"x-conversation-id": SECRET, "authorization": f"Bearer {SECRET}"}
            body = {"messages": [{"role": "user", "content": SECRET}]}
            await cluster.post("/v1/chat/completions", body, headers)
        cluster["d0"].faults.cut_after_events = 1
        cluster["d1"].faults.cut_after_events = 1
        await cluster.chat(SECRET, stream=True)
        await cluster.post("/v1/chat/completions", {"messages": SECRET})
        await cluster.request("GET", f"/v1/conversations/{SECRET}")
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert any('"turn_failed"' in line for line in lines)
    assert not [line for line in lines if SECRET in line]


async def test_what_becomes_of_workers_has_names_that_stay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with a_cluster() as cluster:
        await cluster["d1"].stop()
        await cluster.until(lambda: not cluster.service.fleet.is_up(WorkerId("d1")))
    told = [record.__dict__ for record in caplog.records if "fields" in record.__dict__]
    up = {each["fields"]["worker"] for each in told if each["event"] == "worker_up"}
    assert up == {"p0", "d0", "d1"}
    (lost,) = [each["fields"] for each in told if each["event"] == "worker_lost"]
    assert (lost["worker"], lost["state"]) == ("d1", "lost")
    assert lost["reason"]
