import http.client
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import harness
from bench.native.programs import PLACE, Load, fake_workers, send_load
from bench.overhead import candidates
from bench.overhead.burst import Case, Place
from bench.overhead.burst import burst as send_burst
from bench.overhead.candidates import (
    DIRECT,
    OURS_AGENT,
    OURS_PD,
    OURS_PLACE,
    OURS_PLACE_NEXT,
    OURS_TAIL,
    Candidate,
    Ports,
    free_ports,
)
from bench.overhead.candidates import up as candidates_up
from bench.overhead.check import check
from bench.overhead.process_cost import cpu_s, rss_mib, tree
from bench.overhead.report import print_tables, ratios, summary
from conserve_sglang.core.errors import ConfigError

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler (cc) to build bench/native with"
)
CORES = os.sched_getaffinity(0)
CHAT = "/v1/chat/completions"
Answer = tuple[http.client.HTTPResponse, bytes]


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    found = free_ports()
    with fake_workers(found.prefill, found.decode, CORES, tick_us=1000):
        yield found


@pytest.fixture
def decoder(ports: Ports) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", ports.decode[0], timeout=10)
    yield connection
    connection.close()


def ask(connection: http.client.HTTPConnection, path: str, body: Any = None) -> Answer:
    method = "GET" if body is None else "POST"
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    return response, response.read()


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "mark:0123456789abcdef go"}], **fields}


def events_of(raw: bytes) -> list[Any]:
    *events, done, rest = raw.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/server_info"])
def test_a_fake_worker_answers_probes_on_one_connection(
    decoder: http.client.HTTPConnection, path: str
) -> None:
    for _ in range(2):
        response, _ = ask(decoder, path)
        assert response.status == 200
        assert not response.will_close


def test_a_fake_worker_does_not_know_other_paths(decoder: http.client.HTTPConnection) -> None:
    assert ask(decoder, "/nothing")[0].status == 404


def test_a_whole_answer_counts_tokens_and_repeats_the_mark(
    decoder: http.client.HTTPConnection,
) -> None:
    answer = json.loads(ask(decoder, CHAT, chat())[1])
    assert "0123456789abcdef" in answer["choices"][0]["message"]["content"]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(json.dumps(chat())) // 4
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


def test_a_turn_with_a_bootstrap_room_has_nothing_cached(
    decoder: http.client.HTTPConnection,
) -> None:
    answer = json.loads(ask(decoder, "/generate", {"text": "a", "bootstrap_room": 7})[1])
    assert answer["meta_info"]["cached_tokens"] == 0


def test_a_stream_has_an_event_for_each_token_then_the_usage(
    decoder: http.client.HTTPConnection,
) -> None:
    body = chat(stream=True, max_tokens=5, stream_options={"include_usage": True})
    response, raw = ask(decoder, CHAT, body)
    assert response.getheader("content-type", "").startswith("text/event-stream")
    *tokens, usage = events_of(raw)
    assert len(tokens) == 5
    assert tokens[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 5


def test_a_stream_says_no_usage_when_not_asked(decoder: http.client.HTTPConnection) -> None:
    events = events_of(ask(decoder, CHAT, chat(stream=True, max_tokens=3))[1])
    assert [event["usage"] for event in events] == [None] * 3


@pytest.mark.parametrize(("is_stream", "num_events"), [(False, 0), (True, 4)])
def test_the_client_counts_whole_answers(
    ports: Ports, tmp_path: Path, is_stream: bool, num_events: int
) -> None:
    content = f"mark:{PLACE}"
    body = {"messages": [{"content": content}], "stream": is_stream, "max_tokens": 4}
    path = tmp_path / "body.json"
    path.write_text(json.dumps(body))
    load = Load(port=ports.decode[1], connections=4, body=path, seconds=0.2, warm_up_s=0.05, seed=1)
    counted = send_load(load, CORES)
    assert counted["errors"] == 0
    assert counted["requests"] > 0
    assert counted["latency_us"]["p50"] <= counted["latency_us"]["p99"]
    assert counted["all_events"] == num_events * counted["ended"]


def test_compiled_router_of_other_sources_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "COMPILED", tmp_path)
    with pytest.raises(ConfigError, match="Run `make compiled`"):
        candidates.compiled_python()


@pytest.mark.parametrize(
    "candidate", [DIRECT, OURS_PD, OURS_TAIL, OURS_AGENT], ids=lambda c: c.name
)
def test_turns_reach_the_workers_they_should(
    ports: Ports, tmp_path: Path, candidate: Candidate
) -> None:
    bodies = [json.dumps(chat()).replace("0123456789abcdef", PLACE)]
    with candidates_up([candidate], ports, CORES, tmp_path) as (running,):
        seen = check(running, ports, bodies)
        if running.pid:
            assert cpu_s(tree(running.pid)) > 0
            assert rss_mib(tree(running.pid)) > 1
    assert seen["paired"] == {DIRECT: 0, OURS_PD: 8, OURS_TAIL: 1, OURS_AGENT: 2}[candidate]


def test_a_wrong_path_of_turns_is_an_error(ports: Ports, tmp_path: Path) -> None:
    bodies = [json.dumps(chat()).replace("0123456789abcdef", PLACE)]
    with candidates_up([DIRECT], ports, CORES, tmp_path) as (running,):
        claims = type(running)(candidate=OURS_PD, port=running.port, pid=None)
        with pytest.raises(ConfigError, match="paired"):
            check(claims, ports, bodies)


def burst(number: int, candidate: str, rate: float, *, is_noisy: bool = False) -> dict[str, Any]:
    return {
        "round": number,
        "case": "a",
        "candidate": candidate,
        "requests_per_s": rate,
        "events_per_s": 0.0,
        "router_cpu_us": 1e6 / rate,
        "router_rss_mib": 1.0,
        "others_cores": 0.0,
        "num_errors": 0,
        "latency_us": {"p50": 1e6 / rate, "p95": 1.0, "p99": 1.0, "max": 1.0},
        "lateness_us": None,
        "is_noisy": is_noisy,
    }


def test_noisy_bursts_do_not_count_beside_quiet_ones() -> None:
    bursts = [burst(0, "ours-pd", 9.0, is_noisy=True), burst(1, "ours-pd", 3.0)]
    (row,) = summary(bursts)
    assert row["requests_per_s"] == 3.0
    assert (row["num_quiet"], row["num_bursts"]) == (1, 2)


def test_a_candidate_that_does_not_play_a_case_has_no_row_there() -> None:
    bursts = [burst(0, "ours-pd", 1.0), burst(0, "ours-tail", 1.0) | {"case": "another"}]
    assert [(row["case"], row["candidate"]) for row in summary(bursts)] == [
        (each["case"], each["candidate"]) for each in bursts
    ]


def test_ratios_are_taken_within_a_round() -> None:
    bursts = [
        burst(number, name, rate)
        for number, pair in enumerate([(6.0, 2.0), (40.0, 10.0), (5.0, 1.0)])
        for name, rate in zip(("ours-pd", "sglang-router"), pair, strict=True)
    ]
    (row,) = ratios(bursts)
    assert row["requests_per_s"] == {"median": 4.0, "min": 3.0, "max": 5.0}
    assert row["p50"]["median"] == pytest.approx(0.25)


def test_the_record_is_saved_with_the_machine_it_was_taken_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    bursts = [burst(0, "ours-pd", 6.0), burst(0, "sglang-router", 2.0)]
    record = {"rows": summary(bursts), "ratios": ratios(bursts), "bursts": bursts}
    print_tables(record)
    assert "3.00 (3.00-3.00)" in capsys.readouterr().out
    saved = json.loads(harness.save("router_overhead", record).read_text())
    assert saved["bench"] == "router_overhead"
    assert saved["machine"]["num_cores"] >= 1
    assert saved["rows"] == record["rows"]


@pytest.mark.parametrize("candidate", [OURS_PLACE, OURS_PLACE_NEXT], ids=lambda c: c.name)
def test_turns_are_placed_and_reported_by_the_native_client(
    candidate: Candidate, ports: Ports, tmp_path: Path
) -> None:
    case = Case(name="1 KB x 4", body=tmp_path / "body.json", connections=4, seconds=0.3)
    place = Place(router_core=max(CORES), core=min(CORES), workers_pid=os.getpid(), patience_s=0)
    with candidates_up([candidate], ports, CORES, tmp_path) as (running,):
        check(running, ports, ["{}"])
        row = send_burst(running, case, place, seed=1)
        control = http.client.HTTPConnection("127.0.0.1", ports.routers[1], timeout=10)
        metrics, raw = ask(control, "/metrics")
        control.close()
    assert metrics.status == 200
    assert (row["num_errors"], row["requests_per_s"] > 0) == (0, True)
    placed = sum(
        float(line.split()[1])
        for line in raw.decode().splitlines()
        if line.startswith('conserve_router_turns_total{outcome="answered"}')
    )
    num_open = 4 if candidate is OURS_PLACE_NEXT else 0  # the last is reported with the next
    assert placed >= row["num_ended"] - num_open > 0
