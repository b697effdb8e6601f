"""`x-request-id`: a client's own name for a request, and the router's where it gave none."""

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.router.request_ids import MAX_ID_BYTES, id_in, request_line
from tests.fakes.router_cluster import Cluster, a_cluster

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
PATHS = (CHAT, "/v1/completions", "/generate", MESSAGES, RESPONSES)
BODY: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "prompt": "hello",
    "text": "hello",
    "max_tokens": 5,
}
SENT = "Trace-1.a_b~c:/d=e+f"


@given(st.binary(max_size=MAX_ID_BYTES + 2))
def test_line_is_one_line_whatever_is_given(given_id: bytes) -> None:
    line = request_line(given_id)
    assert line.startswith(b"x-request-id: ")
    assert line.endswith(b"\r\n")
    assert line[:-2].isascii()
    assert b"\r" not in line[:-2]
    assert b"\n" not in line[:-2]
    assert len(id_in(line)) <= MAX_ID_BYTES


@pytest.mark.parametrize("fit", [b"a", SENT.encode(), b"x" * MAX_ID_BYTES])
def test_fit_names_are_kept(fit: bytes) -> None:
    assert id_in(request_line(fit)) == fit.decode()


@pytest.mark.parametrize(
    "unfit", [None, b"", b"x" * (MAX_ID_BYTES + 1), b"a b", b'a"b', b"a\x1bb", b"\xc3\xa9", b"a\n"]
)
def test_other_names_count_as_none(unfit: bytes | None) -> None:
    own = {id_in(request_line(unfit)) for _ in range(600)}
    assert len(own) == 600
    assert all(each.startswith("req_") and len(each) == 28 for each in own)


@pytest.mark.parametrize("path", PATHS)
async def test_client_and_workers_are_told_the_clients_name(cluster: Cluster, path: str) -> None:
    body = {"model": "tiny", "input": "hello"} if path == RESPONSES else BODY
    for number in range(3):
        headers = {"x-request-id": f"{SENT}{number}", "x-conversation-id": f"c{number}"}
        answer = await cluster.post(path, body, headers)
        assert answer.status == 200, answer.body
        assert answer.headers["x-request-id"] == f"{SENT}{number}"
        decoder = answer.headers["x-conserve-decoder"]
        for worker in ("p0", decoder):
            assert cluster[worker].turns[-1].headers["x-request-id"] == f"{SENT}{number}"
        if path == MESSAGES:
            assert answer.headers["request-id"] == f"{SENT}{number}"


async def test_name_that_changes_with_each_request_of_a_connection(cluster: Cluster) -> None:
    client = await cluster.connect()
    told: list[str] = []
    for given_id in ("one", "two", "", "four", "a b", "six"):
        headers = {"x-conversation-id": "c", "x-request-id": given_id}
        client.ask(CHAT, BODY, headers)
        answer = await client.answer()
        told.append(answer.headers["x-request-id"])
        worker = cluster[answer.headers["x-conserve-decoder"]]
        assert worker.turns[-1].headers["x-request-id"] == told[-1]
    assert [told[n] for n in (0, 1, 3, 5)] == ["one", "two", "four", "six"]
    assert all(told[n].startswith("req_") for n in (2, 4))


@pytest.mark.parametrize("is_stream", [False, True])
async def test_turn_without_a_name_gets_one(cluster: Cluster, is_stream: bool) -> None:
    answers = [await cluster.chat("hello", stream=is_stream, name=None) for _ in range(2)]
    one, two = (answer.headers["x-request-id"] for answer in answers)
    assert one != two
    assert one.startswith("req_")
    assert cluster["p0"].turns[-1].headers["x-request-id"] == two


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/health", 200), ("GET", "/v1/models", 200), ("GET", "/nothing", 404),
     ("PUT", CHAT, 405), ("GET", "/v1/conversations/none", 404), ("PUT", MESSAGES, 405)],
)  # fmt: skip
async def test_what_is_no_turn_has_it_too(
    cluster: Cluster, method: str, path: str, status: int
) -> None:
    answer = await cluster.request(method, path, headers={"x-request-id": SENT})
    assert (answer.status, answer.headers["x-request-id"]) == (status, SENT)
    again = await cluster.request(method, path)
    assert again.headers["x-request-id"].startswith("req_")


async def test_requests_that_cannot_be_read_have_it_too(cluster: Cluster) -> None:
    client = await cluster.connect()
    client.send(
        b"POST /generate HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\n"
        b"content-length: 999999999\r\n\r\n"
    )
    status, headers = await client.head()
    assert (status, headers["x-request-id"]) == (413, "mine")
    client = await cluster.connect()
    client.send(b"nothing that is HTTP\r\n\r\n")
    status, headers = await client.head()
    assert status == 400
    assert headers["x-request-id"].startswith("req_")


async def test_turn_that_no_worker_serves_has_it_too(cluster: Cluster) -> None:
    for name in ("p0", "d0", "d1"):
        cluster[name].faults.statuses = [500] * 9
    answer = await cluster.post(CHAT, BODY, {"x-request-id": SENT})
    assert (answer.status, answer.headers["x-request-id"]) == (502, SENT)


async def test_per_turn_lines_name_the_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with a_cluster(max_attempts=2) as cluster:
        cluster["p0"].faults.statuses = [500]
        assert (await cluster.post(CHAT, BODY, {"x-request-id": "one"})).status == 200
        cluster["d0"].faults.statuses = cluster["d1"].faults.statuses = [400]
        assert (await cluster.post(CHAT, BODY, {"x-request-id": "two"})).status == 400
        for name in ("d0", "d1"):
            cluster[name].answer = "one two three"
            cluster[name].faults.statuses = []
        cluster["d0"].faults.cut_after_events = 2
        named = {"x-request-id": "three", "x-conversation-id": "new"}
        answer = await cluster.post(CHAT, {**BODY, "stream": True}, named)
        if answer.headers["x-conserve-decoder"] != "d0":
            named["x-conversation-id"] = "newer"
            await cluster.post(CHAT, {**BODY, "stream": True}, named)
    fields = [each.__dict__ for each in caplog.records if "fields" in each.__dict__]
    ids = {each["event"]: each["fields"].get("request_id") for each in fields}
    assert ids["turn_failed"] == "one"
    assert ids["turn_unanswered"] == "two"
    assert ids["turn_interrupted"] == "three"
    (line,) = [each for each in caplog.messages if "interrupted after" in each]
    assert "(three)" in line
