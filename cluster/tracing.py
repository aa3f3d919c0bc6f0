"""OpenTelemetry traces: one span per request, and below it one for each stage of the waterfall.

In: the header ``traceparent`` of a request, and its waterfall when it ends. Out: spans, sent in the background to an
OTLP collector. vLLM's own span of the request is a child of Prism's. Without a collector nothing is imported or made.

Source: https://www.w3.org/TR/trace-context/ and https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from cluster.waterfall import INGRESS, STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Span, Tracer

    from cluster.messages import Spent

TRACEPARENT: Final = "traceparent"
"""The header that carries a trace from process to process."""
PROTOCOL: Final = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
"""The variable that makes vLLM speak OTLP over HTTP, as Prism does. Its default is gRPC."""
SECOND_NS: Final = 10**9


class Tracing:
    """Begins the traces of this process.

    OpenTelemetry's own environment variables, such as ``OTEL_TRACES_SAMPLER`` and ``OTEL_SERVICE_NAME``, are heeded.

    Args:
        endpoint: The URL of an OTLP collector over HTTP, such as ``http://collector:4318/v1/traces``, or None.
    """

    def __init__(self, endpoint: str | None) -> None:
        self._tracer = None if endpoint is None else _tracer(endpoint)

    def begin(self, name: str, traceparent: str | None) -> RequestTrace | None:
        """Begins the span of a request that has just arrived.

        Args:
            name: The name of the span.
            traceparent: The client's header ``traceparent``. A malformed one counts as none.

        Returns:
            The trace, or None if the process has no collector.
        """
        if self._tracer is None:
            return None
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract({TRACEPARENT: traceparent or ""})
        return RequestTrace(self._tracer, self._tracer.start_span(name, parent, SpanKind.SERVER))


class RequestTrace:
    """The trace of one request.

    Args:
        tracer: Makes the spans of the stages.
        span: The span of the whole request.
    """

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._started_ns = time.time_ns()

    @property
    def traceparent(self) -> str:
        """The header that makes another process's span a child of this one."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, spent: Spent, status: int, code: str, facts: Mapping[str, Any]) -> None:
        """Ends the trace. Each stage becomes a span. They follow each other from the arrival on, in the order of
        ``STAGES``. The span of ``ingress`` ends at the arrival, so it begins before its parent. A status of 500 or more
        marks the span as an error.

        Args:
            spent: The waterfall, in seconds by stage.
            status: The HTTP status of the request.
            code: The code of its error, or ``ok``.
            facts: More attributes of the span. A client's texts must not be among them.
        """
        if not self._span.is_recording():
            return
        from opentelemetry.trace import StatusCode, set_span_in_context

        context, at_ns = set_span_in_context(self._span), self._started_ns
        for stage in (stage for stage in STAGES if stage in spent):
            took_ns = round(spent[stage] * SECOND_NS)
            started_ns = at_ns - took_ns if stage == INGRESS else at_ns
            span = self._tracer.start_span(stage, context, start_time=started_ns)
            at_ns = started_ns + max(took_ns, 0)
            span.end(at_ns)
        self._span.set_attributes({"http.response.status_code": status, **facts})
        if code != "ok":
            self._span.set_attribute("error.type", code)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR, code)
        self._span.end()


def _tracer(endpoint: str) -> Tracer:
    """A tracer whose spans a thread sends to the collector. A collector that is away costs its spans and nothing
    else."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", "prism")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider.get_tracer("prism")
