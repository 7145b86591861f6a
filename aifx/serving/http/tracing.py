"""The record of a request to a model, and a span of OpenTelemetry for it if OTEL_EXPORTER_OTLP_ENDPOINT is set.

Names are those of the semantic conventions for generative AI (opentelemetry.io/docs/specs/semconv/gen-ai), where they
have one. A `traceparent` (W3C Trace Context) that a client sends is the span's parent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from aifx.core.errors import EnvironmentFault
from aifx.core.extras import install_command
from aifx.core.web.traffic import AccessRecord
from aifx.serving.requests import Usage


@dataclass
class AnswerRecord(AccessRecord):
    """The line of a request to a model in the access log."""

    model: str | None = None
    stream: bool = False
    rows: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reasons: list[str] = field(default_factory=list)
    queue_s: float | None = None
    first_token_s: float | None = None
    prompt: object = None

    def add(self, usage: Usage) -> None:
        """Count what one of the answers cost."""
        self.prompt_tokens = (self.prompt_tokens or 0) + usage.prompt_tokens
        self.completion_tokens = (self.completion_tokens or 0) + usage.completion_tokens
        self.cached_tokens = (self.cached_tokens or 0) + usage.cached_tokens
        if usage.queue_s is not None:
            self.queue_s = max(self.queue_s or 0.0, usage.queue_s)


ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

OPERATIONS = {
    "/v1/completions": "text_completion",
    "/v1/chat/completions": "chat",
    "/v1/embeddings": "embeddings",
}
"""`gen_ai.operation.name` by route."""


class Tracer:
    """Makes the spans of requests that have ended."""

    def __init__(self, provider: Any) -> None:
        """`provider`: an `opentelemetry.sdk.trace.TracerProvider`."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("aifx.serving")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, record: AnswerRecord, headers: Mapping[bytes, bytes]) -> None:
        """Make the span of a request that has just ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        given = {name: headers.get(name.encode(), b"").decode("latin-1") for name in ("traceparent", "tracestate")}
        parent = self._propagator.extract(given)
        end = time.time_ns()
        start = end - _ns(record.duration_s or 0.0)
        operation = OPERATIONS.get(record.path)
        name = f"{operation} {record.model}" if operation and record.model else f"{record.method} {record.path}"
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, _attributes(record, operation), start_time=start)
        for event, seconds in (("begun", record.queue_s), ("first token", record.first_token_s)):
            if seconds is not None:
                span.add_event(event, timestamp=start + _ns(seconds))
        if record.status >= 500 or record.error is not None:
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(end)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def open_tracer(environ: Mapping[str, str]) -> Tracer | None:
    """The tracer of this server, or None without a collector. Raises EnvironmentFault if the packages are missing."""
    if not any(environ.get(name) for name in ENDPOINTS) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        why = f"{ENDPOINTS[0]} names a collector of traces"
        raise EnvironmentFault("opentelemetry is not installed", why, install_command("serve-otel"))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    service = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "aifx-serve"}
    provider = TracerProvider(resource=Resource.create(service))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)


def _attributes(record: AnswerRecord, operation: str | None) -> dict[str, Any]:
    known = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "aifx" if operation else None,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.response.finish_reasons": record.finish_reasons or None,
        "aifx.request.id": record.id,
        "aifx.cached_tokens": record.cached_tokens,
        "aifx.time_in_queue_s": record.queue_s,
        "aifx.time_to_first_token_s": record.first_token_s,
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "url.path": record.path,
        "client.address": record.client or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
