"""Attacks by clients and templates of strangers: the server refuses them, and answers the others meanwhile."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from test_http_limits import connect, eventually, is_closed, post, received, request_bytes
from toy_server import WAIT_S, Served

from aifx.core.web.connections import MAX_HEADER_BYTES, PROGRESS_BYTES
from aifx.data.chat.template import CHATML
from aifx.serving.http.protocol import MOST_DETAILS, Body, ChatRequest, CompletionRequest, PredictionRequest
from aifx.serving.http.text import LONG_TEXT

Serve = Callable[..., Served]
JSON = {"Content-Type": "application/json"}
USER = [{"role": "user", "content": "a"}]
LOOPS = (
    CHATML
    + """\
{% if messages[0].content == 'loop' %}
{% for _ in range(99999) %}{% for _ in range(99999) %}{% endfor %}{% endfor %}
{% endif %}"""
)

DOUBLES = (
    CHATML
    + """\
{% if messages[0].content == 'double' %}
{% set found = namespace(text='a') %}
{% for _ in range(40) %}{% set found.text = found.text + found.text %}{% endfor %}
{% endif %}"""
)


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/v1/completions", "prompt", {"prompt": "LONG"}),
        ("/v1/completions", "prompt", {"prompt": ["a", "LONG"]}),
        ("/v1/chat/completions", "messages", {"messages": [{"role": "user", "content": "LONG"}]}),
        ("/v1/embeddings", "input", {"input": "LONG"}),
        ("/v1/embeddings", "input", {"input": ["a", "LONG"]}),
        ("/tokenize", "prompt", {"prompt": "LONG"}),
        ("/tokenize", "messages", {"messages": [{"role": "user", "content": "LONG"}]}),
    ],
    ids=["completion", "completions", "chat", "embedding", "embeddings", "tokenize", "tokenize-chat"],
)
def test_a_long_prompt_is_refused_by_its_bytes(served: Served, path: str, field: str, body: dict[str, Any]) -> None:
    assert served.state.tokenizer.most_bytes is not None
    size = max(served.state.tokenizer.most_bytes * served.engine.max_model_len + 1, LONG_TEXT)
    answer = served.http.post(path, content=json.dumps(body).replace("LONG", "a" * size), headers=JSON)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, field, "context_length_exceeded")
    assert "bytes are more than" in error["message"]


def test_a_prompt_of_the_most_bytes_is_read(served: Served) -> None:
    most = served.engine.max_model_len
    assert post(served, prompt="a" * (most - 4)).status_code == 200
    found = served.http.post("/tokenize", json={"prompt": "a" * most})
    assert found.json()["count"] == most


def test_the_tokens_of_a_short_text_are_counted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """`aifx bench serve` asks for the ids of more words than a small model reads."""
    monkeypatch.setattr(served.engine, "max_model_len", 8)
    assert served.http.post("/tokenize", json={"prompt": "a" * 4000}).json()["count"] == 4000
    assert "4000 tokens" in post(served, prompt="a" * 4000).json()["error"]["message"]


def test_long_texts_are_tokenized_beside_the_event_loop(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a tokenizer whose tokens have no longest text; the lock of the interpreter would stop the loop."""
    monkeypatch.setattr(served.state.tokenizer, "most_bytes", None)

    async def turns() -> int:
        count, task = 0, asyncio.ensure_future(served.state.encode(["a word " * 30_000], "prompt"))
        while not task.done():
            await asyncio.sleep(0.001)
            count += 1
        return count

    assert served.server._loop is not None
    assert asyncio.run_coroutine_threadsafe(turns(), served.server._loop).result(WAIT_S) >= 10


@pytest.mark.slow
def test_health_is_answered_while_long_prompts_are_tokenized(serve: Serve) -> None:
    """Those of a tokenizer whose tokens have no longest text."""
    served = serve()
    served.state.tokenizer.most_bytes = None
    done: list[int] = []

    def ask() -> None:
        with httpx.Client(base_url=served.url, timeout=WAIT_S, trust_env=False) as client:
            done.append(client.post("/v1/completions", json={"prompt": "a word " * 100_000}).status_code)

    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(ask) for _ in range(10)]
        eventually(lambda: served.state._readers.borrowed_tokens > 0)
        before = 0
        while len(done) < 10 and not all(future.done() for future in asked):
            assert served.http.get("/health").status_code == 200
            before += len(done) < 10 and served.state._readers.borrowed_tokens > 0
    assert done == [400] * 10
    assert before >= 10


OWN = "http://localhost:8000"
SITES: dict[str, tuple[dict[str, str], int]] = {
    "a program": ({}, 200),
    "its own page": ({"Origin": OWN, "Sec-Fetch-Site": "same-origin"}, 200),
    "its own page in an old browser": ({"Origin": OWN}, 200),
    "a typed address": ({"Sec-Fetch-Site": "none"}, 200),
    "an allowed site": ({"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}, 200),
    "another site": ({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
    "another site in an old browser": ({"Origin": "https://evil.example"}, 403),
    "another port": ({"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, 403),
    "another port in an old browser": ({"Origin": "http://localhost:3000"}, 403),
    "a file or a frame": ({"Origin": "null"}, 403),
    "a picture of another site": ({"Sec-Fetch-Site": "cross-site"}, 403),
}


def test_a_page_of_another_site_may_not_ask_a_server_without_a_key(serve: Serve) -> None:
    served = serve(cors_origins=("https://app.example",))
    for name, (headers, status) in SITES.items():
        answer = served.http.post(
            "/v1/completions", json={"prompt": "a"}, headers={"Host": "localhost:8000", **headers}
        )
        assert answer.status_code == status, name
        assert served.http.get("/v1/models", headers={"Host": "localhost:8000", **headers}).status_code == status, name
        assert served.http.get("/", headers={"Host": "localhost:8000", **headers}).status_code == 200, name
    assert answer.json()["error"]["type"] == "permission_error"
    assert len(served.engine.requests) == sum(status == 200 for _, status in SITES.values())


def test_a_body_without_a_content_type_is_no_json(served: Served) -> None:
    count = len(served.engine.requests)
    answer = served.http.post("/v1/completions", content=b'{"prompt": "a"}')
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]
    assert len(served.engine.requests) == count
    typed = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert served.http.post("/v1/completions", content=b'{"prompt": "a"}', headers=typed).status_code == 200


@pytest.mark.parametrize("most", [64, 0])
def test_unfinished_requests_of_an_address_are_limited(serve: Serve, most: int) -> None:
    settings = {} if most else {"max_client_requests": 0}
    served = serve(**settings)
    served.engine.hold = True
    clients = [connect(served) for _ in range(64)]
    for client in clients:
        client.sendall(request_bytes({"prompt": "a", "max_tokens": 1}))
    eventually(lambda: served.state.in_flight == 64)
    one_more = connect(served)
    one_more.sendall(request_bytes({"prompt": "a", "max_tokens": 1}))
    if most:
        received(one_more, b"too_many_requests")
        assert served.http.get("/health").status_code == 200
    else:
        eventually(lambda: served.state.in_flight == 65)
    served.engine.hold = False
    for client in clients if most else [*clients, one_more]:
        received(client, b'"finish_reason"')
    eventually(lambda: not served.state.unfinished)
    assert post(served).status_code == 200


def test_half_of_a_request_is_idle(serve: Serve) -> None:
    """With too many connections, one that sends its request slowly makes room, but none that waits for an answer."""
    served = serve()
    served.server.connection_class.max_connections = 4
    served.http.close()
    served.engine.hold = True
    waiting = connect(served)
    waiting.sendall(request_bytes({"prompt": "a", "max_tokens": 1}))
    eventually(lambda: len(served.engine.waiting) == 1)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    unfinished = [head, head + b"Content-Length: 99\r\n\r\n{", b"GET /"]
    slow = []
    for number, half in enumerate(unfinished):
        client = connect(served)
        client.sendall(half)
        eventually(lambda number=number: len(served.server.connections) == number + 2)  # type: ignore[misc]
        eventually(lambda: all(map(has_started, served.server.connections)))
        slow.append(client)
    others = [connect(served) for _ in slow]
    assert all(map(is_closed, slow))
    served.engine.hold = False
    received(waiting, b'"finish_reason"')
    for client in others:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received(client, b"200 OK")
    served.http = httpx.Client()


def has_started(connection: Any) -> bool:
    return not connection._is_between_requests


def send_until_cut(client: socket.socket, piece: bytes, every_s: float = 0.0) -> None:
    end = time.monotonic() + WAIT_S
    try:
        while time.monotonic() < end:
            client.sendall(piece)
            time.sleep(every_s)
    except (ConnectionResetError, BrokenPipeError):
        return
    raise AssertionError("the server did not close the connection")


def test_a_body_that_drips_is_cut(serve: Serve) -> None:
    served = serve(idle_s=0.4)
    client = connect(served)
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    client.sendall(b"Content-Length: 100000\r\n\r\n{")
    send_until_cut(client, b" ", 0.05)
    eventually(lambda: served.state.in_flight == 0)
    served.server.connection_class.idle_s = 600.0
    assert PROGRESS_BYTES < 100_000
    assert post(served, prompt=" " * 4000).status_code == 200


def test_a_request_that_begins_behind_another_is_idle(serve: Serve) -> None:
    """Its first bytes came with the request before, so no later ones begin it."""
    served = serve(idle_s=0.4)
    for beginning in (b"G", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{"):
        client = connect(served)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + beginning)
        received(client, b"200 OK")
        client.sendall(b" ")
        assert is_closed(client)


def test_a_template_that_loops_is_cut_and_others_are_served(serve: Serve) -> None:
    served = serve(LOOPS, template_s=0.2)
    chat = {"messages": USER, "max_tokens": 1}
    looping = {**chat, "messages": [{"role": "user", "content": "loop"}]}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.http.post, "/v1/chat/completions", json=looping)
        eventually(lambda: served.state._writers.borrowed_tokens == 1 or asked.done())
        assert post(served).status_code == 200
        answer = asked.result()
    assert served.state.templates is not None
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert "serve.template_s = 0.2" in answer.json()["error"]["message"]
    served.state.templates._limit_s = 60.0  # the next process may be slow
    assert served.http.post("/v1/chat/completions", json=chat).status_code == 200


def test_a_template_that_fills_the_memory_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.serving.template_process.MEMORY_BYTES", 100 << 20)
    served = serve(DOUBLES, template_s=60.0)
    doubling = {"messages": [{"role": "user", "content": "double"}], "max_tokens": 1}
    answer = served.http.post("/v1/chat/completions", json=doubling)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert "100 MiB" in answer.json()["error"]["message"]
    assert served.http.post("/v1/chat/completions", json={**doubling, "messages": USER}).status_code == 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": [1, *[None] * 1000]}),
        (CompletionRequest, {"prompt": [[1], *[None] * 1000]}),
        (ChatRequest, {"messages": [{}] * 1000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 1000}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}] * 1000}]}),
        (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [{}] * 1000}]}),
        (PredictionRequest, {"rows": [1] * 1000}),
    ],
    ids=["ids", "lists", "messages", "content", "parts", "tool-calls", "rows"],
)
def test_the_first_wrong_item_of_a_list_ends_its_validation(kind: type[Body], body: dict[str, Any]) -> None:
    """Errors for a million of them took ten seconds, within which no other request was answered, and 4 GB."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() < MOST_DETAILS


@pytest.mark.parametrize("size", [MAX_HEADER_BYTES + 1000, 3 * MAX_HEADER_BYTES])
def test_headers_above_the_limit_are_refused(served: Served, size: int) -> None:
    answer = served.http.get("/health", headers={"X-Long": "a" * size})
    assert (answer.status_code, answer.json()["error"]["type"]) == (431, "invalid_request_error")
    assert served.http.get("/health", headers={"X-Long": "a" * (MAX_HEADER_BYTES - 1000)}).status_code == 200


@pytest.mark.parametrize("headers", [b"X-Long: " + b"a" * MAX_HEADER_BYTES, b"\r\n".join([b"a:"] * 20_000)])
def test_headers_that_come_at_once_are_measured(served: Served, headers: bytes) -> None:
    """All of them are in one read of the socket, which an incomplete head of the same size would not be."""
    with connect(served) as client:
        port = client.getsockname()[1]
        eventually(lambda: any(one.client[1] == port for one in served.server.connections))
        connection = next(one for one in served.server.connections if one.client[1] == port)
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n\r\n"
        assert len(head) > MAX_HEADER_BYTES
        connection.loop.call_soon_threadsafe(connection.data_received, head)
        received(client, b" 431 ")


BODY_BYTES = 16 << 20


def by_http_client(served: Served, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=WAIT_S)
    connection.request("POST", path, b" " * BODY_BYTES, headers)
    with connection.getresponse() as answer:
        assert b'"error"' in answer.read()
        return answer.status


def by_urllib(served: Served, path: str, headers: dict[str, str]) -> int:
    """It asks the server to close the connection."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as caught:
        opener.open(urllib.request.Request(served.url + path, b" " * BODY_BYTES, headers), timeout=WAIT_S)
    assert b'"error"' in caught.value.read()
    return int(caught.value.code)


def by_httpx(served: Served, path: str, headers: dict[str, str]) -> int:
    return served.http.post(path, content=b" " * BODY_BYTES, headers=headers).status_code


@pytest.mark.parametrize("ask", [by_http_client, by_urllib, by_httpx])
def test_a_refusal_reaches_a_client_that_sends_all_of_its_body(served: Served, ask: Callable[..., int]) -> None:
    assert ask(served, "/v1/completions", JSON) == 413
    assert ask(served, "/v1/completions", {"Content-Type": "text/plain"}) == 415
    assert ask(served, "/v1/nope", JSON) == 404
    assert post(served).status_code == 200


def test_only_a_part_of_a_refused_body_is_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.core.web.app.MAX_DISCARDED_BYTES", 1 << 20)
    client = connect(served)
    client.sendall(b"POST /v1/nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
    received(client, b" 404 ")
    send_until_cut(client, b" " * (1 << 16))
    eventually(lambda: served.state.in_flight == 0)


def test_a_client_that_awaits_permission_sends_no_refused_body(served: Served) -> None:
    client = connect(served)
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    client.sendall(b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
    assert b"100 Continue" not in received(client, b" 413 ")
    assert is_closed(client)
