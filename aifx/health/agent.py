"""Serve a node's health over HTTP: `/healthz`, `/v1/report` and Prometheus' `/metrics`.

The check runs if a client asks and the last check is older than the interval. It runs in one thread for all clients.
`/healthz` says only that the agent runs: it asks for no token and waits for nothing.
"""

from __future__ import annotations

import gzip
import hmac
import json
import math
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from typing import Any

from aifx.core.addresses import is_loopback, is_own_name
from aifx.core.json_values import encode_json
from aifx.health import connections
from aifx.health.report import SEVERITIES, STATUSES

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
    """The check, which runs at most once per interval and never twice at the same time."""

    def __init__(self, check: Callable[[], Document], interval_s: float) -> None:
        self._check = check
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._newest: Future[CheckResult] | None = None
        self._last: CheckResult | None = None
        self.started = self.failed = 0

    def now(self) -> CheckResult:
        """Return a result of this interval, and wait for it if there is none yet."""
        return self._due().result()

    def last(self) -> CheckResult:
        """Return the last result at once, and start the next check if it is older than the interval."""
        newest = self._due()
        return self._last or newest.result()

    def _due(self) -> Future[CheckResult]:
        """Return the check of this interval, which may still run."""
        with self._lock:
            newest = self._newest
            if newest is None or (newest.done() and time.monotonic() >= newest.result().fresh_until):
                self.started += 1
                self._newest = newest = Future()
                threading.Thread(target=self._run, args=(newest,), daemon=True, name="check").start()
            return newest

    def _run(self, future: Future[CheckResult]) -> None:
        document, error, body = None, "", b""
        try:
            report = self._check()
            body, document = gzip.compress(encode_json(report).encode(), 1), report
        except Exception as failure:
            self.failed += 1
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        self._last = CheckResult(document, error, body, time.time(), time.monotonic() + self._interval_s)
        future.set_result(self._last)


class Agent(ThreadingHTTPServer):
    """The server.

    Args:
        address: host and port; port 0 takes a free one.
        token: what a client must send; empty if the agent asks for none.
        tls: the certificate; None to serve without TLS.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], checks: Checks, token: str = "", tls: ssl.SSLContext | None = None):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.checks, self.token = checks, token
        self.connections = connections.Connections()
        self.is_private = is_loopback(address[0])
        if tls is not None:
            # The connection's own thread does the handshake, so a client that stalls in it blocks no other.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"{'https' if tls is not None else 'http'}://{host}:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.connections.admit(request, client_address[0]):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        self.connections.remove(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self.connections.close_late()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that disconnects."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "aifx-doctor"
    sys_version = ""
    server: Agent
    rfile: BufferedReader
    is_first = True

    def handle_one_request(self) -> None:
        if not self.is_first:
            self.server.connections.expect(self.request, connections.IDLE_LIMIT_S)
            self.rfile.peek(1)
            self.server.connections.expect(self.request, connections.REQUEST_LIMIT_S)
        self.is_first = False
        super().handle_one_request()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.is_private and not all(map(is_own_name, self.headers.get_all("Host", ()))):
            # A web page whose host name was pointed at this machine (DNS rebinding).
            self._error(421, "the Host header must be localhost")
        elif path == "/healthz":
            self._answer(200, b'{"status": "ok"}\n')
        elif path not in ("/v1/report", "/metrics"):
            self._error(404, "the paths are /healthz, /v1/report and /metrics")
        elif not self._is_allowed():
            self._error(401, "the header 'Authorization: Bearer TOKEN' is missing or wrong")
        else:
            self.server.connections.expect(self.request, math.inf)
            if path == "/metrics":
                self._answer(200, *metrics(self.server.checks, self.headers.get("Accept", "")))
            else:
                self._report()

    def _report(self) -> None:
        last = self.server.checks.now()
        if last.document is None:
            self._error(503, f"the check failed: {last.error}")
        elif "gzip" in self.headers.get("Accept-Encoding", ""):
            self._answer(200, last.body, encoding="gzip")
        else:
            self._answer(200, gzip.decompress(last.body))

    def _is_allowed(self) -> bool:
        shown = self.headers.get("Authorization", "")
        return not self.server.token or hmac.compare_digest(shown.encode(), f"Bearer {self.server.token}".encode())

    def _error(self, code: int, why: str) -> None:
        self._answer(code, json.dumps({"error": why}).encode() + b"\n")

    def _answer(self, code: int, body: bytes, kind: str = "application/json", encoding: str = "") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if encoding:
            self.send_header("Content-Encoding", encoding)
        if code == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.server.connections.expect(self.request, connections.ANSWER_LIMIT_S)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


def metrics(checks: Checks, accept: str = "") -> tuple[bytes, str]:
    """Return the last check in the format of Prometheus or OpenMetrics that `accept` asks for, and its content type."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(checks))
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # the client asks for a version that is not a number
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


class _Metrics:
    """What `/metrics` shows of the checks, as prometheus_client collects it."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        last = self._checks.last()
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
