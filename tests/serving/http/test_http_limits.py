"""Clients that go away, stall, ask too much or may not ask: the others are served, and nothing of theirs is left."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from toy_server import WAIT_S, Served

from aifx.serving.http.app import check_ending

Serve = Callable[..., Served]
BODY = {"prompt": "abc", "max_tokens": 4}
JSON = {"Content-Type": "application/json"}


def post(served: Served, **body: Any) -> httpx.Response:
    return served.http.post("/v1/completions", json={**BODY, **body})


def connect(served: Served, receive_buffer: int = 0) -> socket.socket:
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(WAIT_S)
    client.connect(("127.0.0.1", served.port))
    return client


def request_bytes(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_closed(client: socket.socket) -> bool:
    """Whether the server closed the connection; waits for it."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def received(client: socket.socket, words: bytes) -> bytes:
    """The server's answer, as soon as these words are in it or the connection is closed."""
    found = b""
    while words not in found and (part := client.recv(1 << 16)):
        found += part
    assert words in found
    return found


def test_small_parts_are_sent_at_once(served: Served) -> None:
    """Otherwise a token of a reused connection waits for the acknowledgement of the one before."""
    with socket.create_connection(("127.0.0.1", served.port)):
        eventually(lambda: bool(served.server.connections))
        for connection in list(served.server.connections):
            accepted = connection.transport.get_extra_info("socket")  # type: ignore[attr-defined]
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def records(served: Served, count: int) -> list[dict[str, Any]]:
    """The lines of the access log, as soon as there are so many."""
    eventually(lambda: served.log_file.exists() and len(served.log_file.read_text().splitlines()) >= count)
    return [json.loads(line) for line in served.log_file.read_text().splitlines()]


def test_a_key_is_asked_for_by_all_but_probes(serve: Serve) -> None:
    served = serve(key="se-cret")
    assert served.client.completions.create(model="toy", prompt="a", max_tokens=1).choices[0].text == "a"
    for header in ({}, {"Authorization": "Bearer se-cre"}, {"Authorization": "se-cret"}, {"Authorization": "Bearer"}):
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nope"):
            answer = served.http.get(path, headers=header)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), (path, header)
    assert served.http.get("/health").status_code == served.http.get("/ready").status_code == 200
    assert "se-cret" not in served.log_file.read_text()


def test_a_name_that_points_at_this_machine_is_refused(serve: Serve) -> None:
    """A web page can have its own host name resolve to 127.0.0.1."""
    served = serve()
    assert served.http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 421
    assert served.http.get("/v1/models", headers={"Host": "localhost:8000"}).status_code == 200


def test_pages_of_other_origins(serve: Serve) -> None:
    served = serve(key="secret", cors_origins=("https://app.example",))  # a browser sends no key with this question
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    path = "/v1/completions"
    allowed = served.http.options(path, headers={"Origin": "https://app.example", **asked})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://app.example")
    other = served.http.options(path, headers={"Origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in other.headers


def test_large_bodies(serve: Serve) -> None:
    served = serve(max_body_bytes=10_000)
    assert post(served, prompt="a" * 4000).status_code == 200
    refused = post(served, prompt="a" * 10_000)
    assert (refused.status_code, "serve.max_body_bytes = 10000" in refused.text) == (413, True)

    def pieces() -> Any:  # without a length
        for _ in range(100):
            yield b" " * 1000

    assert served.http.post("/v1/completions", content=pieces(), headers=JSON).status_code == 413
    assert post(served).status_code == 200


def test_a_full_queue_and_an_engine_that_fails(serve: Serve) -> None:
    served = serve(queue=4)
    served.engine.queue, served.engine.hold = 3, True
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(post, served) for _ in range(3)]
        eventually(lambda: len(served.engine.waiting) == 3)
        full = post(served)
        assert (full.status_code, full.headers["retry-after"]) == (429, "2")
        with pytest.raises(openai.RateLimitError):
            served.client.completions.create(model="toy", prompt=["a", "b"], stream=True)
        assert len(served.engine.waiting) == 3
        served.engine.hold = False
        assert [future.result().status_code for future in waiting] == [200] * 3
    served.engine.failing = True
    failed = post(served)
    assert failed.status_code == 500
    assert "a toy broke" in failed.json()["error"]["message"]
    with pytest.raises(openai.APIError, match="a toy broke"):
        list(served.client.completions.create(model="toy", prompt="a", stream=True))
    text = served.http.get("/metrics").text
    assert 'vllm:request_success_total{engine="0",finished_reason="error",model_name="toy"} 2.0' in text
    served.engine.failing = False
    served.engine.refused = "grammar"
    refused = post(served)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
    served.engine.refused = None
    served.engine.failure = "it ran out of memory"
    for path in ("/health", "/ready"):
        answer = served.http.get(path)
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            503,
            "the engine ended: it ran out of memory",
        )


def test_a_request_that_takes_too_long(serve: Serve) -> None:
    served = serve(request_s=0.4)
    served.engine.step_s = 0.1
    for streams, status, words in ((False, b" 504 ", b'"timeout"'), (True, b" 200 ", b"serve.request_s")):
        with connect(served) as client:  # which sends all at once, so that the body is not late
            client.sendall(request_bytes({**BODY, "max_tokens": 4000, "stream": streams}))
            assert status in received(client, words).partition(b"\r\n")[0]
    served.engine.wait_idle()
    client = connect(served)  # a body that does not come
    client.sendall(request_bytes({}).replace(b"Content-Length: 2", b"Content-Length: 9"))
    received(client, b" 408 ")


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_away_frees_its_pages(serve: Serve, streams: bool) -> None:
    served = serve()
    served.engine.step_s = 0.05
    client = connect(served)
    client.sendall(request_bytes({**BODY, "max_tokens": 4000, "stream": streams, "n": 2}))
    eventually(lambda: len(served.engine.running) == 2)
    if streams:
        received(client, b"data: ")
    client.close()
    served.engine.wait_idle()
    (record,) = records(served, 1)
    assert (record["status"], record["error"]) == (499, "the client went away")
    eventually(lambda: 'finished_reason="abort",model_name="toy"} 2.0' in served.http.get("/metrics").text)


@pytest.mark.slow
def test_a_client_that_does_not_wait_for_embeddings(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve()
    served.engine.hold = True
    client = connect(served)
    client.sendall(request_bytes({"input": ["a", "b", "c"]}, "/v1/embeddings"))
    eventually(lambda: served.state.in_flight == 1)
    client.close()
    eventually(lambda: served.state.in_flight == 0)
    (record,) = records(served, 1)
    assert record["status"] == 499
    gc.collect()
    assert not [line for line in caplog.records if line.name == "asyncio"]


def test_a_reader_that_stalls_is_cut_and_others_are_served(serve: Serve) -> None:
    served = serve()
    served.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = connect(served, receive_buffer=4096)
    eventually(lambda: len(served.server.connections) == 1)
    (connection,) = served.server.connections
    connection.idle_s = 0.5  # others may be slow
    client.sendall(request_bytes({"prompt": "x", "max_tokens": 4000, "stream": True, "logprobs": 20}))
    eventually(lambda: bool(served.engine.running))
    assert post(served).json()["choices"][0]["text"] == "abca"
    (record,) = [one for one in records(served, 2) if one.get("stream")]
    assert record["error"] == "the client went away"
    served.engine.wait_idle()
    assert is_closed(client)
    eventually(lambda: served.state.in_flight == 0)


def test_half_of_a_request(serve: Serve) -> None:
    served = serve(idle_s=0.4)
    unfinished = [
        b"",
        b"POST /v1/comp",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99\r\nHost: localhost\r\n\r\n{",
    ]
    clients = [connect(served) for _ in unfinished]
    for client, half in zip(clients, unfinished, strict=True):
        client.sendall(half)
    assert all(map(is_closed, clients))
    dripping = connect(served)  # a header for ever, byte by byte

    def drip() -> None:
        end = time.monotonic() + WAIT_S
        for byte in itertools.chain(b"GET / HTTP/1.1\r\n", itertools.repeat(ord("a"))):
            assert time.monotonic() < end
            dripping.sendall(bytes([byte]))
            time.sleep(0.05)

    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        drip()
    eventually(lambda: not served.server.connections)
    served.server.connection_class.idle_s = 600.0
    assert post(served).status_code == 200


def test_headers_without_end(serve: Serve) -> None:
    served = serve()
    client = connect(served)
    with contextlib.suppress(OSError):  # it is refused before its end
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 10_000_000)
    assert is_closed(client)
    client = connect(served)
    client.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000)
    received(client, b'"invalid_request_error"')
    assert post(served).status_code == 200


@pytest.mark.slow
def test_a_thousand_idle_connections(serve: Serve) -> None:
    served = serve()
    clients = [connect(served) for _ in range(1000)]
    eventually(lambda: len(served.server.connections) >= 1000)
    assert post(served).json()["choices"][0]["text"] == "abca"
    for client in clients:
        client.close()
    eventually(lambda: len(served.server.connections) <= 1)


def test_with_too_many_connections_the_oldest_idle_one_goes(serve: Serve) -> None:
    served = serve()
    served.server.connection_class.max_connections = 5
    served.http.close()
    oldest, *others = [connect(served) for _ in range(5)]
    eventually(lambda: len(served.server.connections) == 5)
    another = connect(served)
    assert is_closed(oldest)
    for client in (*others, another):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received(client, b"200 OK")
    served.http = httpx.Client()


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    served = serve()
    client = connect(served)
    client.sendall(b"".join(request_bytes({**BODY, "prompt": text}) for text in "pqr"))
    found = b""
    while found.count(b"HTTP/1.1 200") < 3 or not found.endswith(b"}"):
        found += client.recv(1 << 16)
    places = [found.find(text * 4) for text in (b"p", b"q", b"r")]
    assert -1 < places[0] < places[1] < places[2]


def test_a_drain_finishes_what_runs_and_takes_no_more(serve: Serve) -> None:
    served = serve(drain_s=600.0)
    served.engine.pause = True
    texts: list[str] = []

    def read() -> None:
        stream = served.client.completions.create(model="toy", prompt="abc", max_tokens=60, stream=True)
        texts.extend(chunk.choices[0].text for chunk in stream)

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: bool(served.engine.running))
    served.server.stop()
    eventually(lambda: served.state.is_draining)
    refused = post(served)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert served.http.get("/ready").status_code == 503
    assert served.http.get("/health").status_code == 200
    served.engine.pause = False
    reader.join(WAIT_S)
    served.thread.join(WAIT_S)
    assert "".join(texts) == "abc" * 20
    assert served.ending is not None
    assert served.ending.cut == 0
    check_ending(served.ending, 600.0)


def test_a_drain_cuts_what_takes_too_long(serve: Serve) -> None:
    served = serve(drain_s=0.2)
    served.engine.step_s = 0.05
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(post, served, max_tokens=4000)
        stream = served.client.completions.create(model="toy", prompt="abc", max_tokens=4000, stream=True)
        next(iter(stream))
        eventually(lambda: len(served.engine.running) == 2)
        served.server.stop()
        with pytest.raises(openai.APIError, match="the server stopped"):
            list(stream)
        assert whole.result().status_code == 503
    served.thread.join(WAIT_S)
    assert served.ending is not None
    assert served.ending.cut == 2
    with pytest.raises(Exception, match=r"2 requests(.|\n)*serve\.drain_s = 0\.2") as caught:
        check_ending(served.ending, 0.2)
    assert caught.value.exit_code == 75  # type: ignore[attr-defined]


def test_the_access_log_has_no_prompt_unless_asked(serve: Serve, tmp_path: Path) -> None:
    served = serve()
    served.http.post("/v1/completions", json={**BODY, "prompt": "my secret"}, headers={"X-Request-Id": "trace-7"})
    served.http.get("/health")
    (record,) = records(served, 1)
    assert (record["id"], record["path"], record["status"]) == ("trace-7", "/v1/completions", 200)
    assert (record["prompt_tokens"], record["completion_tokens"], record["finish_reasons"]) == (9, 4, ["length"])
    assert record["duration_s"] >= record["first_token_s"] >= 0
    assert "secret" not in served.log_file.read_text()
    served.close()
    told = serve(log_prompts=True)
    odd = told.http.post("/v1/completions", json={**BODY, "prompt": "my secret"}, headers={"X-Request-Id": "a\tb"})
    assert odd.headers["x-request-id"] != "a\tb"
    assert records(told, 2)[1]["prompt"] == "my secret"


def test_many_clients_at_once(serve: Serve) -> None:
    """Each has its own answer, and those that leave leave nothing."""
    served = serve(queue=1000)
    served.engine.queue, served.engine.slots, served.engine.step_s = 1000, 16, 0.0005

    def ask(nth: int) -> None:
        word = f"<{nth}>"
        if nth % 3 == 0:
            client = connect(served)
            client.sendall(request_bytes({"prompt": word, "max_tokens": 2000, "stream": bool(nth % 2)}))
            time.sleep(0.002 * (nth % 7))
            client.close()
        else:
            with httpx.Client(base_url=served.url, timeout=WAIT_S, trust_env=False) as http:
                answer = http.post("/v1/completions", json={"prompt": word, "max_tokens": 30}).json()
            assert answer["choices"][0]["text"] == (word * 30)[:30]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(100)))
    served.engine.wait_idle()
    eventually(lambda: served.state.in_flight == 0)
