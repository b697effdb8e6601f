"""Turns as spans: in memory, and at an OTLP/HTTP receiver of our own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from conserve_sglang.core.tier import ObserveSettings
from conserve_sglang.router.traces import TurnTraces
from conserve_sglang.telemetry.tracing import tracing_to
from tests.fakes.router_cluster import Cluster, a_cluster

THEIR_TRACE, THEIR_SPAN = "11" * 16, "22" * 8


def traced(cluster: Cluster, ratio: float = 1.0) -> InMemorySpanExporter:
    """Listen to a running router's turns."""
    exporter = InMemorySpanExporter()
    door = cluster.service.door
    tracing = tracing_to(SimpleSpanProcessor(exporter), ratio)
    door.executor.meter.listeners = (TurnTraces(tracing, door.executor.meter.clock),)
    return exporter


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    spans = [span for span in exporter.get_finished_spans() if span.name == name]
    return sorted(spans, key=lambda span: span.start_time or 0)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


async def test_a_conversation_is_one_trace_rooted_in_its_first_turn() -> None:
    async with a_cluster() as cluster:
        exporter = traced(cluster)
        key = (await cluster.chat("hello", stream=True)).headers["x-conversation-id"]
        await cluster.chat("hello", "the answer", "more")
        key = (await cluster.request("GET", f"/v1/conversations/{key}")).json()["key"]
        first, second = named(exporter, "turn")
        assert trace_id(first) == trace_id(second) == key.removeprefix("conv-")
        assert first.parent is None
        assert second.parent is not None
        assert second.parent.span_id == span_id(first)
        assert [event.name for event in first.events] == ["kv_transferred", "first_token"]
        assert [event.name for event in second.events] == ["first_token"]
        told = attributes(second)
        assert told["conserve.turn"] == 2
        assert told["conserve.reason"] == "pinned"
        assert told["conserve.outcome"] == "answered"
        assert told["gen_ai.usage.output_tokens"] == len("the answer")
        one, two = named(exporter, "attempt")
        assert attributes(one)["conserve.prefiller"] == "p0"
        assert "conserve.prefiller" not in attributes(two)
        assert two.parent is not None
        assert two.parent.span_id == span_id(second)
        assert (first.start_time or 0) <= (one.start_time or 0)


async def test_workers_are_told_the_attempt_as_their_parent() -> None:
    async with a_cluster() as cluster:
        exporter = traced(cluster)
        await cluster.chat("hello")
        (attempt,) = named(exporter, "attempt")
        sent = cluster["d0"].turns[0].headers["traceparent"]
        assert sent == f"00-{trace_id(attempt)}-{span_id(attempt):016x}-01"


@pytest.mark.parametrize("flags", ["01", "00"])
async def test_a_client_with_a_trace_gets_the_turn_in_it_if_it_keeps_it(flags: str) -> None:
    async with a_cluster() as cluster:
        exporter = traced(cluster)
        headers = {
            "x-conversation-id": "c",
            "traceparent": f"00-{THEIR_TRACE}-{THEIR_SPAN}-{flags}",
        }
        body = {"messages": [{"role": "user", "content": "x"}]}
        await cluster.post("/v1/chat/completions", body, headers)
        turns = named(exporter, "turn")
        sent = cluster["d0"].turns[0].headers["traceparent"]
        if flags == "00":
            assert not turns
            assert sent == headers["traceparent"]
            return
        (turn,) = turns
        assert trace_id(turn) == THEIR_TRACE
        assert turn.parent is not None
        assert f"{turn.parent.span_id:016x}" == THEIR_SPAN
        key = (await cluster.request("GET", "/v1/conversations/c")).json()["key"]
        assert [f"{link.context.trace_id:032x}" for link in turn.links] == [key[5:]]
        assert sent.startswith(f"00-{THEIR_TRACE}-")
        assert THEIR_SPAN not in sent


async def test_failed_attempts_and_rejected_turns_are_errors() -> None:
    async with a_cluster(max_attempts=2) as cluster:
        exporter = traced(cluster)
        cluster["p0"].faults.statuses = [500, 500]
        assert (await cluster.chat("hello")).status == 502
        (turn,) = named(exporter, "turn")
        assert not turn.status.is_ok
        assert attributes(turn)["conserve.outcome"] == "rejected"
        attempts = named(exporter, "attempt")
        assert [attempt.status.description for attempt in attempts] == ["prefiller_failed"] * 2
        assert [attributes(attempt)["conserve.attempt"] for attempt in attempts] == [1, 2]


async def test_a_conversation_is_traced_whole_or_not_at_all() -> None:
    async with a_cluster() as cluster:
        exporter = traced(cluster, ratio=0.5)
        for number in range(24):
            await cluster.chat("hello", name=f"c{number}")
            await cluster.chat("hello", "the answer", "more", name=f"c{number}")
        traces = [trace_id(span) for span in named(exporter, "turn")]
        assert 2 <= len(set(traces)) <= 22
        assert all(traces.count(each) == 2 for each in traces)


class _Receiver(BaseHTTPRequestHandler):
    received: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            self.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def a_receiver() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    received: list[ExportTraceServiceRequest] = []
    handler = type("_Handler", (_Receiver,), {"received": received})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_spans_reach_a_collector_over_http_at_the_latest_when_the_router_stops() -> None:
    with a_receiver() as (endpoint, received):
        observe = ObserveSettings(otlp_endpoint=endpoint, trace_ratio=1.0)
        async with a_cluster(observe=observe) as cluster:
            await cluster.chat("hello")
        spans = [
            span
            for request in received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        assert sorted(span.name for span in spans) == ["attempt", "turn"]
        resource = received[0].resource_spans[0].resource
        assert "conserve-sglang-router" in str(resource)


async def test_nobody_listens_unless_asked() -> None:
    async with a_cluster() as cluster:
        assert cluster.service.door.executor.meter.listeners == ()
