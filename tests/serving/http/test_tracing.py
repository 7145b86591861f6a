"""A span of OpenTelemetry for each request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from toy_server import WAIT_S, Served

from aifx.core.errors import EnvironmentFault
from aifx.serving.http import tracing
from aifx.serving.http.tracing import AnswerRecord, Tracer, open_tracer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def served(serve: Callable[..., Served], exporter: InMemorySpanExporter) -> Served:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server = serve()
    server.state.tracer = Tracer(provider)
    return server


def only_span(exporter: InMemorySpanExporter) -> Any:
    """The span of the one request, which the server makes when its client has the answer already."""
    until = time.monotonic() + WAIT_S
    while not exporter.get_finished_spans() and time.monotonic() < until:
        time.sleep(0.005)
    (span,) = exporter.get_finished_spans()
    return span


def test_a_request_is_a_span_below_that_of_its_client(served: Served, exporter: InMemorySpanExporter) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    body = {"prompt": "abc", "max_tokens": 5, "ignore_eos": True}
    served.http.post("/v1/completions", json=body, headers=headers).raise_for_status()
    served.http.get("/health").raise_for_status()  # of which there are too many
    span = only_span(exporter)
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.name == "text_completion toy"
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "toy",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "http.response.status_code": 200,
    }
    assert expected.items() <= dict(span.attributes).items()
    assert [event.name for event in span.events][-1:] == ["first token"]
    assert span.start_time <= span.events[-1].timestamp <= span.end_time


def test_a_request_without_a_trace_begins_one(served: Served, exporter: InMemorySpanExporter) -> None:
    served.http.post("/v1/completions", json={"prompt": 7})
    span = only_span(exporter)
    assert span.parent is None
    assert span.attributes["http.response.status_code"] == 400


def test_spans_reach_the_collector_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", f"{WAIT_S:g}")
    tracer = open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "set"})
    assert tracer is not None
    tracer.record(AnswerRecord("id", "127.0.0.1", "POST", "/v1/chat/completions", 200, model="main"), {})
    tracer.close()
    collector.shutdown()
    (path, content) = received[0]
    assert path == "/v1/traces"
    assert b"chat main" in content
    assert b"aifx-serve" in content


def test_without_a_collector_or_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracer({}) is None
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault) as caught:
        open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert "opentelemetry-sdk" in caught.value.hint
