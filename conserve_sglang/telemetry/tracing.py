"""OpenTelemetry set-up: a tracer that sends spans to a collector. Needs the extra `otel`."""

from dataclasses import dataclass

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer

from conserve_sglang import __version__

EXPORT_TIMEOUT_S = 5.0


class ChosenIds(RandomIdGenerator):
    """Random ids, but for the next trace where both of its ids were chosen."""

    def __init__(self) -> None:
        self._trace_id: int | None = None
        self._span_id: int | None = None

    def choose(self, trace_id: int, span_id: int) -> None:
        """The ids of the trace begun next, and of its first span."""
        self._trace_id, self._span_id = trace_id, span_id

    def generate_trace_id(self) -> int:
        """Called by the SDK for a span without a parent."""
        chosen, self._trace_id = self._trace_id, None
        return super().generate_trace_id() if chosen is None else chosen

    def generate_span_id(self) -> int:
        """Called by the SDK for every span."""
        chosen, self._span_id = self._span_id, None
        return super().generate_span_id() if chosen is None else chosen


@dataclass(frozen=True, slots=True)
class Tracing:
    """What makes spans, and decides which traces are kept."""

    tracer: Tracer
    ids: ChosenIds
    ratio: TraceIdRatioBased
    provider: TracerProvider


def tracing_to(processor: SpanProcessor, ratio: float) -> Tracing:
    """Keep `ratio` of the traces we begin, and all a client has begun and keeps."""
    ids, sampler = ChosenIds(), TraceIdRatioBased(ratio)
    provider = TracerProvider(
        sampler=ParentBased(sampler),
        resource=Resource.create(
            {"service.name": "conserve-sglang-router", "service.version": __version__}
        ),
        shutdown_on_exit=False,
        id_generator=ids,
    )
    provider.add_span_processor(processor)
    return Tracing(provider.get_tracer("conserve_sglang", __version__), ids, sampler, provider)


def tracing_over_http(endpoint: str, ratio: float) -> Tracing:
    """Send spans to an OTLP/HTTP collector, in batches and from a thread of their own."""
    exporter: SpanExporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
    return tracing_to(BatchSpanProcessor(exporter, schedule_delay_millis=1000), ratio)
