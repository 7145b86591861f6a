"""`aifx doctor serve`: a real process on loopback, and its parts where a test must hold up the check."""

import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager
from functools import partial

import httpx
import pytest
from certificates import make_certificate
from fleets import AIFX, environ, run
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from aifx.core.web.app import exposition
from aifx.core.web.policy import is_loopback
from aifx.core.web.server import bind, url_of
from aifx.health.agent import Checks, open_agent, registry_of

WAIT_S = 120.0
"""Only ends a hang."""

get = partial(httpx.get, timeout=WAIT_S)

READY = re.compile(r"listening at (\S+?),? ")


@contextmanager
def served(tmp_path, *options, **env):
    """The agent's process and its address."""
    command = [*AIFX, "doctor", "serve", "--port", "0", "--only", "cpu", "--interval", "7200", *options]
    process = subprocess.Popen(command, env=environ(tmp_path, **env), stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert READY.search(line), line + process.stderr.read()
        yield process, READY.search(line)[1].rstrip(";")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_and_ends_in_order(tmp_path, number):
    with served(tmp_path) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        assert get(f"{url}/healthz").json() == {"status": "ok"}
        first, second = (get(f"{url}/v1/report").json() for _ in range(2))
        assert first["schema_version"] == 1
        assert first["status"] in ("healthy", "warning", "unhealthy", "unknown")
        assert isinstance(first["snapshot"]["facts"]["kernel"]["release"], str)
        assert second == first  # the interval has not passed
        assert get(f"{url}/nothing").status_code == 404
        assert httpx.post(f"{url}/v1/report", timeout=WAIT_S).status_code == 405
        process.send_signal(number)
        assert process.wait(WAIT_S) == 0


def test_the_token_is_asked_for_by_all_but_healthz(tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with served(tmp_path, "--token-file", str(token), AIFX_DOCTOR_TOKEN="another") as (_, url):
        assert get(f"{url}/healthz").status_code == 200
        for path, status in (("/v1/report", 200), ("/metrics", 200), ("/nothing", 404)):
            assert get(url + path).status_code == 401
            assert get(url + path, headers={"Authorization": "Bearer another"}).status_code == 401
            assert get(url + path, headers={"Authorization": "Bearer s3cret"}).status_code == status


def test_others_are_let_in_only_with_a_token(tmp_path):
    refused = run("doctor", "serve", "--bind", "0.0.0.0", "--port", "0", env=environ(tmp_path))
    assert refused.returncode == 2
    assert "--bind 0.0.0.0" in refused.stderr
    assert "token" in refused.stderr
    assert "--insecure" in refused.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate")
def test_tls(tmp_path):
    certificate, key = make_certificate(tmp_path)
    with served(tmp_path, "--tls-cert", str(certificate), "--tls-key", str(key)) as (_, url):
        assert url.startswith("https://")
        host, port = url.removeprefix("https://").split(":")
        with socket.create_connection((host, int(port))):  # one that never speaks holds up nobody
            context = ssl.create_default_context(cafile=certificate)
            assert get(f"{url}/healthz", verify=context).status_code == 200
            with pytest.raises(httpx.ConnectError):
                get(f"{url}/healthz")
            asking = ["doctor", "fleet", "--agents", url, "--json"]
            trusting = run(*asking, "--tls-ca", str(certificate), env=environ(tmp_path))
            assert json.loads(trusting.stdout)["findings"] == []
            doubting = run(*asking, env=environ(tmp_path))
            (finding,) = json.loads(doubting.stdout)["findings"]
            assert finding["id"] == "fleet.node.no_report"  # it is there: a matter of the set-up
            assert doubting.returncode == 2


def test_a_port_that_is_taken_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("doctor", "serve", "--port", str(port), env=environ(tmp_path))
    assert done.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port}" in done.stderr


DOCUMENT = {
    "schema_version": 1,
    "host": "n1",
    "status": "unhealthy",
    "findings": [
        {"id": "a.b", "severity": "critical", "device": 'gpu "0"\\\n'},
        {"id": "a.c", "severity": "warning", "device": ""},
        {"id": "a.c", "severity": "warning", "device": ""},
    ],
    "skipped": [{"id": "x.y", "why": "none"}],
    "duration_s": 1.25,
}


def checked():
    """The metrics of a check."""
    checks = Checks(lambda: DOCUMENT, 60)
    return registry_of(checks, checks.due().result())


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", "text/plain;version=odd", "text/html"])
def test_metrics_are_in_prometheus_format(accept):
    body, content_type = exposition(checked(), accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    check_samples(text_string_to_metric_families(body.decode()))


def test_metrics_are_in_openmetrics_format_if_asked_for():
    body, content_type = exposition(checked(), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    check_samples(openmetrics.text_string_to_metric_families(body.decode()))


def check_samples(families):
    found = {(one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples}
    prefix = "aifx_doctor_"
    assert found[f"{prefix}status", "unhealthy"] == 1
    assert found[f"{prefix}status", "healthy"] == 0
    assert found[f"{prefix}findings", "warning"] == 2
    assert found[f"{prefix}finding", "a.b", "critical", 'gpu "0"\\\n'] == 1
    assert found[f"{prefix}finding", "", "a.c", "warning"] == 2
    assert found[f"{prefix}check_duration_seconds",] == 1.25
    assert found[f"{prefix}skipped",] == 1
    assert found[f"{prefix}checks_total",] == 1


@contextmanager
def agent(check, interval_s=60.0, host="127.0.0.1"):
    bound = bind(host, 0, port_hint="")
    url, server = url_of(bound), open_agent(Checks(check, interval_s), bound)
    thread = server.start()
    try:
        yield url
    finally:
        server.stop()
        thread.join()


def test_healthz_waits_for_no_check_and_one_check_serves_all():
    started, may_end, calls = threading.Event(), threading.Event(), []

    def check():
        calls.append(1)
        started.set()
        assert may_end.wait(WAIT_S)
        return DOCUMENT

    answers = []
    with agent(check) as url:
        askers = [threading.Thread(target=lambda: answers.append(get(f"{url}/v1/report").json())) for _ in range(8)]
        for asker in askers:
            asker.start()
        assert started.wait(WAIT_S)
        assert get(f"{url}/healthz").status_code == 200
        assert answers == []
        may_end.set()
        for asker in askers:
            asker.join(WAIT_S)
        assert answers == [DOCUMENT] * 8
        assert len(calls) == 1


def test_after_the_interval_it_is_checked_again_and_metrics_do_not_wait():
    calls, may_end = [], threading.Event()

    def check():
        calls.append(1)
        assert len(calls) == 1 or may_end.wait(WAIT_S)
        return DOCUMENT | {"duration_s": float(len(calls))}

    with agent(check, 0.0) as url:
        assert get(f"{url}/v1/report").json()["duration_s"] == 1
        scraped = get(f"{url}/metrics").text
        assert "aifx_doctor_check_duration_seconds 1.0\n" in scraped  # the last one's, while the next runs
        may_end.set()
        assert get(f"{url}/v1/report").json()["duration_s"] >= 2


def test_a_check_that_fails_is_reported_and_counted():
    def check():
        raise RuntimeError("broken\nprobe")

    with agent(check) as url:
        answer = get(f"{url}/v1/report")
        assert answer.status_code == 503
        assert "RuntimeError: broken probe" in answer.json()["error"]
        text = get(f"{url}/metrics").text
        assert 'aifx_doctor_status{status="unknown"} 1.0' in text
        assert "aifx_doctor_check_failures_total 1.0" in text
        assert "aifx_doctor_check_success 0.0" in text


@pytest.mark.slow
def test_a_report_that_cannot_be_encoded_is_a_failed_check():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with agent(lambda: {**DOCUMENT, "skipped": deep}) as url:
        answer = get(f"{url}/v1/report")
        assert answer.status_code == 503
        assert "RecursionError" in answer.json()["error"]


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 loopback here")
def test_it_listens_on_ipv6():
    with agent(lambda: DOCUMENT, host="::1") as url:
        assert url.startswith("http://[::1]:")
        assert get(f"{url}/v1/report").json() == DOCUMENT


def test_a_client_that_stalls_holds_up_nobody():
    with agent(lambda: DOCUMENT) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as stalled:
            stalled.sendall(b"GET /v1/rep")
            assert get(f"{url}/v1/report").json() == DOCUMENT


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.8.8.8", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("node1", False)],
)  # fmt: skip
def test_what_is_loopback(host, is_ours):
    assert is_loopback(host) is is_ours
