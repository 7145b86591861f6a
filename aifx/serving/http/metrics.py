"""Prometheus' metrics: of text by the names that vLLM gives them, so that its dashboards work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from aifx.serving.http.documents import Latency
from aifx.serving.predictor import Predictor, PredictorStats
from aifx.serving.requests import EngineStats, ServingEngine
from aifx.serving.swap import SwapCounts

LABELS = ("model_name", "engine")

MOST_RECENT = 1000
"""Values of which the page shows percentiles."""

# The buckets of vLLM (vllm/v1/metrics/loggers.py).
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
PREDICTION_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
OUTCOMES = ("success", "abort", "error")
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
"""Description and field of `EngineStats` of each metric, by name."""

PREDICTION_GAUGES = {
    "aifx:requests_running": ("Requests of which all rows are at the device.", "running"),
    "aifx:requests_waiting": ("Requests with rows that wait.", "waiting"),
}
PREDICTION_COUNTERS = {
    "aifx:rows": ("Rows that were predicted.", "rows"),
    "aifx:batches": ("Calls of the program.", "batches"),
    "aifx:compilations": ("Programs compiled after the start; 0 if none was missing.", "compilations"),
}
"""The same of `PredictorStats`."""

SWAPS = {
    "aifx:swaps": ("Checkpoints that took over.", "taken"),
    "aifx:swaps_refused": ("Checkpoints that did not pass.", "refused"),
}
"""The same of `SwapCounts`."""

WATCH_GAUGES = {"aifx:watch_failing": ("1 if the last look for another model failed, otherwise 0.", "failing")}
"""The same of `SwapCounts`, as gauges."""


SHADOW = {
    "aifx:shadow_answered": ("Requests that the second model answered, too.", "answered"),
    "aifx:shadow_failed": ("Requests that the second model did not answer.", "failed"),
    "aifx:shadow_dropped": ("Requests for which the queue of the second model had no room.", "dropped"),
}
"""The same of the counts of `--shadow`."""


class Timing:
    """A histogram that also knows its last values."""

    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram
        self._last: deque[float] = deque(maxlen=MOST_RECENT)

    def observe(self, value: float) -> None:
        self._histogram.observe(value)
        self._last.append(value)

    def latency(self, name: str) -> Latency:
        ordered = sorted(self._last.copy())

        def at(share: float) -> float | None:
            return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None

        return Latency(name=name, p50_s=at(0.5), p90_s=at(0.9), p99_s=at(0.99))


class Metrics:
    """The metrics of every server.

    Attributes:
        timings: histograms that the page shows, by their labels there.
    """

    timings: Mapping[str, Timing]

    def __init__(self, model: str, swaps: SwapCounts) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.model = model
        responses = Counter("aifx:http_responses", "Answers by status.", ("status",), registry=self.registry)
        self._responses = responses
        self.registry.register(_Collected(lambda: _families(SWAPS, CounterMetricFamily, swaps, self.labels)))
        self.registry.register(_Collected(lambda: _families(WATCH_GAUGES, GaugeMetricFamily, swaps, self.labels)))

    def count_shadow(self, counts: object) -> None:
        """Add the metrics of a second model."""
        self.registry.register(_Collected(lambda: _families(SHADOW, CounterMetricFamily, counts, self.labels)))

    @property
    def labels(self) -> tuple[str, str]:
        return self.model, "0"

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Timing:
        return Timing(Histogram(name, text, LABELS, registry=self.registry, buckets=buckets).labels(*self.labels))

    def latencies(self) -> list[Latency]:
        return [timing.latency(name) for name, timing in self.timings.items()]

    def counters(self, name: str, text: str, label: str, values: Sequence[str]) -> dict[str, Any]:
        """A counter for each value of a label."""
        counter = Counter(name, text, (*LABELS, label), registry=self.registry)
        return {value: counter.labels(*self.labels, value) for value in values}

    def response(self, status: int) -> None:
        self._responses.labels(str(status)).inc()


class TextMetrics(Metrics):
    """The metrics of a server of text, by vLLM's names."""

    def __init__(self, engine: ServingEngine, model: str, swaps: SwapCounts) -> None:
        super().__init__(model, swaps)
        self.registry.register(_Collected(lambda: self._collect(engine.stats())))
        sizes = _powers(engine.max_model_len)
        self.first_token = self.histogram("vllm:time_to_first_token_seconds", "Time to the first token.", FIRST_TOKEN_S)
        self.inter_token = self.histogram("vllm:inter_token_latency_seconds", "Time from a token to the next.", TOKEN_S)
        self.time_per_token = self.histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time of an answer's tokens after the first.", TOKEN_S
        )
        self.latency = self.histogram("vllm:e2e_request_latency_seconds", "Time of a whole answer.", REQUEST_S)
        self.queue_time = self.histogram("vllm:request_queue_time_seconds", "Time that a request waited.", REQUEST_S)
        self.prompt_tokens = self.histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", sizes)
        self.generation_tokens = self.histogram("vllm:request_generation_tokens", "Tokens of an answer.", sizes)
        self.timings = {
            "time to first token": self.first_token,
            "time between tokens": self.inter_token,
            "whole answer": self.latency,
            "time in the queue": self.queue_time,
        }
        self._finished = self.counters(
            "vllm:request_success", "Answers by how they ended.", "finished_reason", FINISHED
        )

    def finished(self, reason: str, start: float) -> None:
        """Count an answer that began at `start`, by `time.perf_counter`."""
        self._finished[reason].inc()
        self.latency.observe(time.perf_counter() - start)

    def _collect(self, stats: EngineStats) -> Iterator[Any]:
        yield from _families(GAUGES, GaugeMetricFamily, stats, self.labels)
        used = stats.pages_used / max(stats.pages_total, 1)
        usage = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of the pages in use; 1 is all.", labels=LABELS)
        usage.add_metric(self.labels, used)
        yield usage
        yield from _families(COUNTERS, CounterMetricFamily, stats, self.labels)


class PredictionMetrics(Metrics):
    """The metrics of a server of predictions."""

    def __init__(self, predictor: Predictor, model: str, swaps: SwapCounts) -> None:
        super().__init__(model, swaps)
        self.registry.register(_Collected(lambda: self._collect(predictor.stats())))
        self.latency = self.histogram("aifx:request_latency_seconds", "Time of a whole answer.", PREDICTION_S)
        self.queue_time = self.histogram("aifx:request_queue_seconds", "Time that a request waited.", PREDICTION_S)
        self.rows = self.histogram("aifx:request_rows", "Rows of a request.", _powers(10_000))
        self.batch_rows = self.histogram(
            "aifx:batch_rows", "Rows of a call of the program.", _powers(predictor.rows_per_batch)
        )
        self.timings = {"whole answer": self.latency, "time in the queue": self.queue_time}
        self._finished = self.counters("aifx:requests", "Requests by how they ended.", "outcome", OUTCOMES)
        predictor.on_batch = self.batch_rows.observe

    def finished(self, outcome: str) -> None:
        self._finished[outcome].inc()

    def _collect(self, stats: PredictorStats) -> Iterator[Any]:
        yield from _families(PREDICTION_GAUGES, GaugeMetricFamily, stats, self.labels)
        yield from _families(PREDICTION_COUNTERS, CounterMetricFamily, stats, self.labels)


class _Collected:
    """Numbers that are read when they are asked for."""

    def __init__(self, collect: Callable[[], Iterator[Any]]) -> None:
        self.collect = collect


def _families(names: Mapping[str, tuple[str, str]], kind: Any, stats: object, labels: tuple[str, str]) -> Iterator[Any]:
    """A family for each name, of a field of `stats`."""
    for name, (text, field) in names.items():
        made = kind(name, text, labels=LABELS)
        made.add_metric(labels, getattr(stats, field))
        yield made


def _powers(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to `most`."""
    return tuple(m * 10**e for e in range(12) for m in (1, 2, 5) if m * 10**e <= most)
