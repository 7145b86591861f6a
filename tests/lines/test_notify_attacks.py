"""Webhooks under attack: addresses in disguise, hostile receivers, secrets in messages, damaged records and clocks."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inprocess import run
from test_notify_delivery import TARGET, environ, fail, send
from webhook_receiver import SECRET, receiver

from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.lines import delivery, webhook
from aifx.lines.delivery import deliver, find_again, list_targets, outbox_of, send_test

HIDDEN = "s3cret"
AT_RISK = {"OPS_URL_SECRET": SECRET}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "aifx.toml").write_text("")
    return Project(tmp_path)


@contextmanager
def server(answer: Callable[[socket.socket, bytes], object]) -> Iterator[str]:
    """The URL of a server that answers one request with whatever it likes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError), listening.accept()[0] as connection:
                answer(connection, connection.recv(1 << 16))

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/hook/{HIDDEN}"
        thread.join()


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "0"])
def test_an_address_in_disguise_is_refused(host: str) -> None:
    with receiver() as at:
        port = at.url.split(":")[2].split("/")[0]
        found = send_test(replace(TARGET, allow=()), AT_RISK | {"OPS_URL": f"https://{host}:{port}/x"})
        assert "not a public address" in found.reason
        assert at.attempts == []


def test_the_name_that_is_looked_up_is_the_one_that_the_request_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own encoding of names (IDNA 2003) looks up fass.example."""
    asked = list[str]()

    async def getaddrinfo(self: object, host: str, *args: object, **options: object) -> list[Any]:
        asked.append(host)
        raise OSError("no such name")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    send_test(TARGET, AT_RISK | {"OPS_URL": "https://faß.example/x"})
    assert asked == ["xn--fa-hia.example"]


@pytest.mark.parametrize(
    "url", [f"https://u:{HIDDEN}/x@h.example/", f"https://h.example:{HIDDEN}/", f"https://h.example/\r\nX: {HIDDEN}"]
)
def test_no_part_of_a_url_that_cannot_be_used_is_in_a_message(url: str) -> None:
    with pytest.raises(ConfigError, match="OPS_URL") as caught:
        send_test(TARGET, AT_RISK | {"OPS_URL": url})
    assert HIDDEN not in str(caught.value)


@pytest.mark.parametrize("secret", ["whsec_AA==", "whsec_!!!!" + "A" * 32, "whsec_" + "A" * 28, "A" * 120])
def test_a_secret_that_others_could_guess_is_refused(secret: str) -> None:
    with pytest.raises(ConfigError, match="OPS_URL_SECRET has no secret"):
        send_test(TARGET, {"OPS_URL": "https://h.example/", "OPS_URL_SECRET": secret})


def endless(chunk: bytes, head: bytes = b"HTTP/1.1 200 OK\r\n") -> Callable[[socket.socket, bytes], None]:
    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        with suppress(OSError):
            while True:
                connection.sendall(chunk)

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda connection, request: connection.sendall(request), "RemoteProtocolError"),
        (lambda connection, request: connection.sendall(
            b"HTTP/1.1 500 \x1b[31m" + request.split()[1] + b"x" * 50_000 + b"\r\n\r\n"), "500 Internal Server Error"),
        (endless(b"X: " + b"y" * 60_000 + b"\r\n"), "RemoteProtocolError"),
        (endless(b"HTTP/1.1 103 Early Hints\r\n\r\n", b""), "no answer within"),
        (endless(b"10000\r\n" + b"x" * 65536 + b"\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), ""),
    ],
    ids=["echo", "reason", "headers", "informational", "body"],
)  # fmt: skip
def test_a_hostile_answer_ends_and_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[socket.socket, bytes], object], reason: str
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.5)
    with server(answer) as url:
        found = send_test(TARGET, AT_RISK | {"OPS_URL": url})
    assert reason in found.reason
    assert (found.status == 200) == (not reason)
    assert HIDDEN not in found.reason
    assert "\x1b" not in found.reason
    assert len(found.reason) < 200


def test_no_log_has_a_url_and_no_proxy_of_the_environment_gets_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with caplog.at_level(logging.DEBUG), receiver() as at:
        url = at.url.replace("127.0.0.1", f"ann:{HIDDEN}@127.0.0.1")
        found = send_test(TARGET, AT_RISK | {"OPS_URL": url})
    assert found.status == 204
    assert at.headers[0]["authorization"] == "Basic YW5uOnMzY3JldA=="
    assert at.headers[0]["host"] == url.split("@")[1].split("/")[0]
    assert "secret-part" not in caplog.text
    assert HIDDEN not in caplog.text + str(found)


def test_a_clock_that_was_ahead_hides_no_event(project: Project) -> None:
    with receiver() as at:
        send(project, at, clock=lambda: time.time() + 365 * 86400)
        fail(project, "a")
        assert [event.subject for event in list_targets(project, [TARGET], environ(at)).targets[0].waiting] == ["a"]
        assert [event.subject for event in send(project, at).targets[0].sent] == ["a"]


def test_a_clock_that_was_set_back_makes_no_event_wait_for_long(project: Project) -> None:
    with receiver() as at:
        send(project, at)
        fail(project, "a")
        at.answer = lambda event: 500
        assert len(send(project, at, clock=lambda: time.time() + 30 * 86400).targets[0].failed) == 1
        at.answer = lambda event: 204
        assert len(send(project, at).targets[0].sent) == 1


RECORDS = {
    "line/journal.jsonl": [
        {"kind": "ended", "station": "z", "facts": [1]},
        {"kind": "ended", "station": 5, "facts": {"outcome": "failed"}},
        {"kind": "ended", "station": "z", "facts": {"outcome": "verdict", "outputs": {"gates": 5}}},
        {"unknown": 1},
    ],
    "runs/r/events.jsonl": [{"event": "stop", "status": "diverged", "time": 1e300}],
}


@pytest.mark.parametrize(("file", "record"), [(file, one) for file, records in RECORDS.items() for one in records])
def test_a_damaged_record_is_reported_once_and_stops_no_other(
    project: Project, file: str, record: dict[str, Any]
) -> None:
    fail(project, "a")
    path = project.root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads((project.root / "line/journal.jsonl").read_text()) if path.exists() else {}
    with path.open("a") as out:
        out.write(json.dumps(known | record) + "\n")
    with path.open("a") as out:
        good = known | {"station": "b", "digest": "other"} if known else {"event": "stop", "status": "diverged"}
        out.write(json.dumps({**good, "time": time.time()}) + "\n")
    with receiver() as at:
        done = send(project, at)
        assert [event.subject for event in done.targets[0].sent] == ["a", "b" if known else "r"]
        assert [str(path) in one["what"] for one in done.problems] == [True]
        assert send(project, at).exit_code == 0


def test_text_that_is_no_unicode_arrives(project: Project) -> None:
    fail(project, "a\ud800")
    with receiver() as at:
        assert len(send(project, at).targets[0].sent) == 1
        assert at.accepted[0]["subject"] == "a\ud800"


@pytest.mark.parametrize(
    "record",
    [
        {"is": "read", "positions": {"journal": 5}},
        {"is": "read", "positions": {"journal": {"bytes": -5}}},
        {"is": "read", "positions": []},
        {"is": "event", "event": {"id": "x", "type": "t", "source": "s", "subject": "s", "time": "yesterday"}},
        {"is": "failed", "attempts": 1, "next_at": "soon", "last_at": 0, "reason": ""},
    ],
)
def test_a_damaged_cursor_is_named_with_its_way_out(project: Project, record: dict[str, Any]) -> None:
    fail(project, "a")
    box = outbox_of(project, TARGET)
    with receiver() as at:
        at.answer = lambda event: 500
        (failed,) = send(project, at).targets[0].failed
        with box.path.open("a") as out:
            out.write(json.dumps({"id": failed.id} | record) + "\n")
        problem = send(project, at).targets[0].problem
        assert problem is not None
        assert f"of {box.path} is damaged" in problem["what"]
        command = problem["hint"].partition(" && ")[0].split()
        assert command[0] == "mv"
        Path(command[1]).rename(command[2])
        at.answer = lambda event: 204
        assert [event.id for event in send(project, at).targets[0].sent] == [failed.id]


def test_an_event_that_is_sent_again_has_its_id_and_a_new_signature(project: Project) -> None:
    fail(project, "a")
    with receiver() as at:
        (sent,) = send(project, at).targets[0].sent
        time.sleep(max(0.0, int(at.attempts[0][1]) + 1.01 - time.time()))
        deliver(project, [TARGET], environ(at), again=find_again(project, [TARGET], [sent.id[:8]]))
    first, second = at.attempts
    assert first[0] == second[0] == sent.id
    assert first[2] != second[2]


def test_a_long_outbox_is_sent_although_reading_it_takes_longer_than_the_limit(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(project, "a")
    monotonic, late = time.monotonic, [0.0]
    monkeypatch.setattr(delivery.time, "monotonic", lambda: monotonic() + late[0])
    real = delivery.read_events
    monkeypatch.setattr(
        delivery, "read_events", lambda *args, **options: (real(*args, **options), late.append(late.pop() + 100))[0]
    )
    with receiver() as at:
        assert len(send(project, at).targets[0].sent) == 1


def test_people_see_the_first_of_many_events(project: Project) -> None:
    (project.root / "line.toml").write_text('[[notify]]\nurl_from = "OPS_URL"\n')
    fail(project, *(f"s{number}" for number in range(53)))
    done = run(["notify", "ls"], project.root, dict(os.environ))
    assert "and 3 events more" in done.stdout
    assert "s49" in done.stdout
    assert "s50" not in done.stdout
