"""What is logged of turns, and what never is."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.telemetry.logs import ACCESS_LOGGER, JsonFormatter
from tests.fakes.router_cluster import a_cluster

SECRET = "the-words-of-the-prompt"


@pytest.fixture
def with_access_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    with caplog.at_level(logging.INFO, ACCESS_LOGGER):
        yield


def turns(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in caplog.records if record.name == ACCESS_LOGGER]


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
    assert first["endpoint"] == "/v1/chat/completions"


@pytest.mark.usefixtures("with_access_log")
async def test_a_turn_that_is_not_answered_has_its_line_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_cluster(max_attempts=1) as cluster:
        cluster["p0"].faults.statuses = [500]
        assert (await cluster.chat("hello")).status == 502
    (line,) = turns(caplog)
    assert line["outcome"] == "rejected"
    assert line["first_byte_s"] is None
    assert line["output_tokens"] is None
    (failed,) = [r for r in caplog.records if getattr(r, "event", "") == "turn_failed"]
    assert failed.__dict__["fields"]["cause"] == "prefiller_failed"
    assert failed.__dict__["fields"]["why"] == "it answered 500"


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
