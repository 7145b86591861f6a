"""Prometheus' metrics, by the names that vLLM gives them, so that its dashboards work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from aifx.serving.requests import ServingEngine

LABELS = ("model_name", "engine")

# The buckets of vLLM (vllm/v1/metrics/loggers.py).
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FINISHED = ("stop", "length", "abort", "error")

GAUGES = {
    "vllm:num_requests_running": ("Requests that are being answered.", "running"),
    "vllm:num_requests_waiting": ("Requests that wait.", "waiting"),
    "aifx:pages_total": ("Pages of the pool.", "pages_total"),
    "aifx:pages_used": ("Pages that running requests use.", "pages_used"),
    "aifx:pages_cached": ("Pages kept for prompts that may come again.", "pages_cached"),
}
COUNTERS = {
    "vllm:prefix_cache_queries": ("Tokens of prompts looked up in the prefix cache.", "prefix_queries"),
    "vllm:prefix_cache_hits": ("Tokens of prompts found in the prefix cache.", "prefix_hits"),
    "vllm:num_preemptions": ("Requests that were stopped for lack of pages and resumed.", "preemptions"),
    "vllm:prompt_tokens": ("Tokens of prompts that were read.", "prompt_tokens"),
    "vllm:generation_tokens": ("Tokens that were written.", "generation_tokens"),
    "aifx:steps": ("Steps of the engine.", "steps"),
    "aifx:compilations": ("Programs compiled after the start; 0 if none was missing.", "compilations"),
}
"""By name: what it is, and the field of `EngineStats`."""


class Metrics:
    """What `/metrics` shows of an engine and of the answers that were sent."""

    def __init__(self, engine: ServingEngine, model: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_EngineMetrics(engine, model))
        sizes = _powers(engine.max_model_len)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Any:
            return Histogram(f"vllm:{name}", text, LABELS, registry=self._registry, buckets=buckets).labels(model, "0")

        self.first_token = histogram("time_to_first_token_seconds", "Time to the first token.", FIRST_TOKEN_S)
        self.inter_token = histogram("inter_token_latency_seconds", "Time from a token to the next.", TOKEN_S)
        self.time_per_token = histogram(
            "request_time_per_output_token_seconds", "Mean time of an answer's tokens after the first.", TOKEN_S
        )
        self.latency = histogram("e2e_request_latency_seconds", "Time of a whole answer.", REQUEST_S)
        self.queue_time = histogram("request_queue_time_seconds", "Time that a request waited.", REQUEST_S)
        self.prompt_tokens = histogram("request_prompt_tokens", "Tokens of a prompt.", sizes)
        self.generation_tokens = histogram("request_generation_tokens", "Tokens of an answer.", sizes)
        labels = (*LABELS, "finished_reason")
        success = Counter("vllm:request_success", "Answers by how they ended.", labels, registry=self._registry)
        self._finished = {reason: success.labels(model, "0", reason) for reason in FINISHED}
        responses = Counter("aifx:http_responses", "Answers by status.", ("status",), registry=self._registry)
        self._responses = responses

    def finished(self, reason: str, start: float) -> None:
        """Count an answer that began at `start`, by `time.perf_counter`."""
        self._finished[reason].inc()
        self.latency.observe(time.perf_counter() - start)

    def response(self, status: int) -> None:
        self._responses.labels(str(status)).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format of Prometheus or OpenMetrics that `accept` asks for, and its content type."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the client asks for a version that is not a number
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type


class _EngineMetrics:
    """The engine's own counts, as prometheus_client collects them."""

    def __init__(self, engine: ServingEngine, model: str) -> None:
        self._engine, self._labels = engine, (model, "0")

    def collect(self) -> Iterator[Any]:
        stats = self._engine.stats()

        def family(kind: Any, name: str, text: str, value: float) -> Any:
            made = kind(name, text, labels=LABELS)
            made.add_metric(self._labels, value)
            return made

        for name, (text, field) in GAUGES.items():
            yield family(GaugeMetricFamily, name, text, getattr(stats, field))
        used = stats.pages_used / max(stats.pages_total, 1)
        yield family(GaugeMetricFamily, "vllm:kv_cache_usage_perc", "Share of the pages in use; 1 is all.", used)
        for name, (text, field) in COUNTERS.items():
            yield family(CounterMetricFamily, name, text, getattr(stats, field))


def _powers(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to `most`."""
    return tuple(m * 10**e for e in range(12) for m in (1, 2, 5) if m * 10**e <= most)
