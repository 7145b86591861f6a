"""Serve a node's health over HTTP: `/healthz`, `/v1/report` and Prometheus' `/metrics`.

The check runs if a client asks and the last check is older than the interval. It runs in one thread for all clients.
`/healthz` says only that the agent runs: it asks for no token and waits for nothing.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aifx.core.json_values import encode_json
from aifx.core.web.app import make_app, metrics_response
from aifx.core.web.connections import SCRAPE_LIMITS, Limits
from aifx.core.web.policy import Policy, WebError, is_loopback
from aifx.core.web.server import HttpServer
from aifx.health.report import SEVERITIES, STATUSES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Document = dict[str, Any]


@dataclass(frozen=True)
class CheckResult:
    """The last check.

    Attributes:
        document: its report; None if the check failed.
        body: the report as compressed JSON.
        time: its end, Unix time.
        fresh_until: the end of its validity, by `time.monotonic`.
    """

    document: Document | None
    error: str
    body: bytes
    time: float
    fresh_until: float


class Checks:
    """The check, which runs at most once per interval and never twice at the same time.

    Attributes:
        newest: the last result; None before the first.
        started: checks since the agent started.
        failed: those of them that could not run.
    """

    def __init__(self, check: Callable[[], Document], interval_s: float) -> None:
        self._check = check
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._future: Future[CheckResult] | None = None
        self.newest: CheckResult | None = None
        self.started = self.failed = 0

    def due(self) -> Future[CheckResult]:
        """Return the check of this interval, which may still run; start it if the last one is older."""
        with self._lock:
            future = self._future
            if future is None or (future.done() and time.monotonic() >= future.result().fresh_until):
                self.started += 1
                self._future = future = Future()
                threading.Thread(target=self._run, args=(future,), daemon=True, name="check").start()
            return future

    def _run(self, future: Future[CheckResult]) -> None:
        document, error, body = None, "", b""
        try:
            report = self._check()
            body, document = gzip.compress(encode_json(report).encode(), 1), report
        except Exception as failure:
            self.failed += 1
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        self.newest = CheckResult(document, error, body, time.time(), time.monotonic() + self._interval_s)
        future.set_result(self.newest)


def open_agent(
    checks: Checks,
    bound: socket.socket,
    token: str = "",
    tls: ssl.SSLContext | None = None,
    limits: Limits = SCRAPE_LIMITS,
) -> HttpServer:
    """The agent at a socket, which is not started.

    Args:
        token: what a client must send; empty if the agent asks for none.
        tls: the certificate; None to serve without TLS.
    """
    routes = [
        Route("/healthz", _healthz),
        Route("/v1/report", _report),
        Route("/metrics", _metrics),
    ]
    policy = Policy(
        key=token,
        open_paths=("/healthz",),
        own_names_only=is_loopback(bound.getsockname()[0]),
        hints={404: "the paths are /healthz, /v1/report and /metrics"},
    )
    app = make_app(routes, policy)
    app.state.checks = checks
    return HttpServer(app, bound, limits=limits, tls=tls)


async def _healthz(request: Request) -> Response:
    return Response(b'{"status": "ok"}\n', media_type="application/json")


async def _report(request: Request) -> Response:
    checks: Checks = request.app.state.checks
    last = await _awaited(checks.due())
    if last.document is None:
        raise WebError(503, f"the check failed: {last.error}")
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(last.body, headers={"Content-Encoding": "gzip"}, media_type="application/json")
    return Response(await asyncio.to_thread(gzip.decompress, last.body), media_type="application/json")


async def _metrics(request: Request) -> Response:
    checks: Checks = request.app.state.checks
    due = checks.due()
    last = checks.newest or await _awaited(due)
    return metrics_response(registry_of(checks, last), request)


async def _awaited(due: Future[CheckResult]) -> CheckResult:
    """Wait for a check that others wait for, too: a caller that is cancelled does not cancel it."""
    return await asyncio.shield(asyncio.wrap_future(due))


def registry_of(checks: Checks, last: CheckResult) -> CollectorRegistry:
    """The metrics of the last check."""
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(checks, last))
    return registry


class _Metrics:
    """Metrics of the checks, as prometheus_client collects them for `/metrics`."""

    def __init__(self, checks: Checks, last: CheckResult) -> None:
        self._checks, self._last = checks, last

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        last = self._last
        document = last.document or {"status": "unknown", "findings": [], "skipped": [], "duration_s": 0.0}
        by_severity = Counter(one["severity"] for one in document["findings"])
        found = Counter((one["id"], one["severity"], one["device"]) for one in document["findings"])

        def gauge(name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[tuple[str, ...], float]]) -> Any:
            family = GaugeMetricFamily(f"aifx_doctor_{name}", text, labels=labels)
            for values, value in samples:
                family.add_metric(values, value)
            return family

        statuses = {(status,): float(status == document["status"]) for status in STATUSES}
        yield gauge("status", "1 for the status of the node, 0 for the others.", ["status"], statuses.items())
        severities = {(severity,): by_severity[severity] for severity in SEVERITIES}
        yield gauge("findings", "Findings by severity.", ["severity"], severities.items())
        yield gauge("finding", "Findings by rule and device.", ["id", "severity", "device"], found.items())
        yield gauge("skipped", "Rules and families that were skipped.", [], [((), len(document["skipped"]))])
        yield gauge("check_duration_seconds", "Duration of the check.", [], [((), document["duration_s"])])
        yield gauge("check_timestamp_seconds", "Time of the check's end, Unix time.", [], [((), last.time)])
        yield gauge("check_success", "1 if the check could run.", [], [((), float(last.document is not None))])
        yield CounterMetricFamily("aifx_doctor_checks", "Checks since the agent started.", self._checks.started)
        yield CounterMetricFamily("aifx_doctor_check_failures", "Checks that could not run.", self._checks.failed)
