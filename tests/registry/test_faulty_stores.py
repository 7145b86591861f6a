"""Registries on a store that lies, cuts objects short, refuses, answers late or not at all, or has another clock."""

from __future__ import annotations

import io
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import s3fs
from effort import IS_LONG
from killed_acts import ACTS, check_whole, fill, live, said
from s3_server import TIMEOUT_S, Application, s3_server
from werkzeug.wsgi import get_input_stream

from aifx.core.artifact import DamagedArtifact
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, DataError, EnvironmentFault, ExitCode, UsageError
from aifx.core.files import NotExclusive
from aifx.core.stores import Store
from aifx.registry.acts import Caller, attest_file
from aifx.registry.reports import verify_root
from aifx.registry.roots import Root, open_root

LATE_S = 1
"""How long a client waits for an answer, in seconds."""

LATER = "Sat, 04 Dec 2027 00:00:00 GMT"

Start = Callable[..., Any]


@dataclass
class Asked:
    """A request to the store, and its answer.

    Attributes:
        given: the bytes of an object in place of which the store keeps others.
    """

    moto: Application
    environ: dict[str, Any]
    start: Start
    given: bytes | None = None

    @property
    def method(self) -> str:
        return str(self.environ["REQUEST_METHOD"])

    @property
    def path(self) -> str:
        return str(self.environ["PATH_INFO"]).lstrip("/")

    @property
    def is_list(self) -> bool:
        return self.method == "GET" and "list-type" in self.environ.get("QUERY_STRING", "")

    def answer(self, change: Callable[[bytes], bytes] = bytes, *, headers: dict[str, str] | None = None) -> list[bytes]:
        """Answer as moto does, with a body that is changed."""
        status, given = "", dict[str, str]()

        def begin(its_status: str, its_headers: list[tuple[str, str]], *_: Any) -> None:
            nonlocal status
            status = its_status
            given.update(its_headers)

        body = b"".join(self.moto(self.environ, begin))
        if self.method != "HEAD" and status.startswith("2"):
            body = change(body)
            given["Content-Length"] = str(len(body))
        self.start(status, [*{**given, **(headers or {})}.items()])
        return [body]

    def refuse(self, status: str, code: str) -> list[bytes]:
        get_input_stream(self.environ).read()
        self.start(status, [("Content-Type", "application/xml")])
        text = f"<Error><Code>{code}</Code><Message>refused</Message></Error>"
        return [] if self.method == "HEAD" else [text.encode()]

    def hang_up(self) -> None:
        self.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def changed(asked: Asked, change: Callable[[bytes], bytes]) -> list[bytes]:
    """Keep or deliver other bytes of an object, and say that all is well."""
    if asked.method != "PUT":
        return asked.answer(bytes if asked.is_list else change)
    asked.given = get_input_stream(asked.environ).read()
    data = change(asked.given)
    asked.environ.update({"wsgi.input": io.BytesIO(data), "CONTENT_LENGTH": str(len(data))})
    return asked.answer()


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if data else data


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def broken(asked: Asked) -> list[bytes]:
    """Deliver half of what was promised."""
    if asked.method == "HEAD":
        return asked.answer()
    whole = 0

    def half(body: bytes) -> bytes:
        nonlocal whole
        whole = len(body)
        return halved(body)

    start, asked.start = asked.start, lambda status, headers: None
    body = asked.answer(half)
    asked.start = start
    start("200 OK", [("Content-Length", str(whole))])
    return body


def late(asked: Asked) -> list[bytes]:
    body = asked.answer()
    time.sleep(1.5 * LATE_S)
    return body


def lost(asked: Asked) -> list[bytes]:
    """Do what is asked, and close the connection without an answer."""
    body = asked.answer()
    asked.hang_up()
    return body


def stale(asked: Asked) -> list[bytes]:
    """List a folder without what came last."""
    last = re.compile(rb"(<Contents>.*?</Contents>)(?!.*<Contents>)", re.DOTALL)
    return asked.answer(lambda body: last.sub(b"", body) if asked.is_list else body)


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        answers: a request.
        is_lasting: from one request on.
        is_passing: whether what it causes is transient.
    """

    answers: Callable[[Asked], list[bytes]]
    is_lasting: bool = False
    is_passing: bool | None = None


FAULTS = {
    "other bytes": Fault(lambda asked: changed(asked, flipped)),
    "a cut object": Fault(lambda asked: changed(asked, halved)),
    "an answer cut off": Fault(broken, is_passing=True),
    "a lost answer": Fault(lost, is_passing=True),
    "a late answer": Fault(late, is_passing=True),
    "an old list": Fault(stale),
    "unavailable": Fault(lambda asked: asked.refuse("503 Service Unavailable", "ServiceUnavailable"), True, True),
    "too many": Fault(lambda asked: asked.refuse("503 Slow Down", "SlowDown"), True, True),
    "forbidden": Fault(lambda asked: asked.refuse("403 Forbidden", "AccessDenied"), True, False),
    "a clock that is behind": Fault(lambda asked: asked.refuse("403 Forbidden", "RequestTimeTooSkewed"), True, False),
    "a clock that is ahead": Fault(
        lambda asked: asked.answer(headers={"Date": LATER, "Last-Modified": LATER}), is_lasting=True
    ),
}


class FaultyStore:
    """A layer before moto, with a fault at a request.

    Attributes:
        requests: so far.
        damaged: the path of the object that a fault changed, and the bytes that it should have.
    """

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.at, self.requests = -1, 0
        self.damaged: tuple[str, bytes] | None = None
        self._lock = threading.Lock()

    def wrapped(self, moto: Application) -> Application:
        def answer(environ: dict[str, Any], start: Start) -> Any:
            with self._lock:
                turn, fault = self.requests, self.fault
                self.requests += 1
            if fault is None or not (turn == self.at or (fault.is_lasting and turn > self.at)):
                return moto(environ, start)
            asked = Asked(moto, environ, start)
            body = fault.answers(asked)
            if asked.given is not None and ".probe." not in asked.path:
                self.damaged = (asked.path, asked.given)
            return body

        return answer


def as_new() -> Root:
    """The root as a new process opens it."""
    s3fs.S3FileSystem.clear_instance_cache()
    return open_root("s3://bucket/root")


@dataclass
class Place:
    """A registry on a store with faults, and the file system by which a test looks behind them."""

    store: FaultyStore
    files: Any

    def keep(self) -> None:
        """Remember what the store has now."""
        self._kept = self._tags()
        self._content = {path: self.files.cat_file(path) for path in self._kept}

    def restore(self) -> None:
        """Let the store have what it had."""
        tags = self._tags()
        if added := tags.keys() - self._kept.keys():
            self.files.rm(sorted(added))
        for path in (path for path, tag in self._kept.items() if tags.get(path) != tag):
            self.files.pipe_file(path, self._content[path])

    def _tags(self) -> dict[str, str]:
        self.files.invalidate_cache()
        return {path: info["ETag"] for path, info in self.files.find("bucket", detail=True).items()}

    def ask(self, act: Callable[[Root], object], fault: Fault | None = None, at: int = -1) -> object:
        """What an act returns or raises, with a fault at a request."""
        self.store.fault, self.store.at, self.store.requests, self.store.damaged = fault, at, 0, None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(s3fs.S3FileSystem, "read_timeout", LATE_S if fault is FAULTS["a late answer"] else TIMEOUT_S)
            try:
                return act(as_new())
            except AifxError as error:
                return error
            finally:
                self.store.fault = None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = FaultyStore()
    with s3_server(monkeypatch, store.wrapped) as files:
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
        yield Place(store, files)


def check_error(error: AifxError, fault: Fault) -> None:
    """Check that an error has a place and a way out, and that it passes or names damage."""
    assert error.exit_code in (ExitCode.UNABLE, ExitCode.PREEMPTED)
    assert "s3://bucket/root" in str(error) or "fraud" in str(error)
    assert error.hint
    if fault.is_passing is None:
        assert error.transient or isinstance(error, DataError | DamagedArtifact | NotExclusive | UsageError)
    else:
        assert error.transient == fault.is_passing


def check_damage(place: Place, *, is_done: bool) -> None:
    """Check that `verify` finds what a fault damaged, and nothing else. Then repair it, as from a backup."""
    problems = [str(problem) for problem in verify_root(as_new(), (), ()).problems]
    if place.store.damaged is None:
        assert problems == []
        return
    path, right = place.store.damaged
    is_damaged = place.files.exists(path) and place.files.cat_file(path) != right
    named = path.rpartition("/")[0] if "/versions/" in path else path
    assert bool(problems) == any(named in problem for problem in problems)
    assert bool(problems) <= is_damaged
    assert bool(problems) >= (is_damaged and is_done)
    if is_damaged:
        place.files.pipe_file(path, right)


def test_evidence_that_is_damaged_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    root = open_root(str(tmp_path / "root"))
    fill(root)
    object_ = tmp_path / "root/objects" / sha256_of(b"card")
    object_.chmod(0o644)
    object_.write_bytes(b"cart")
    (problem,) = verify_root(root, (), ()).problems
    assert str(object_) in problem.place
    attest_file(root, "fraud@v2", "CARD.md", b"card", None, Caller("ann"))
    assert verify_root(root, (), ()).problems == ()


def test_a_store_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    root = open_root(str(tmp_path / "root"))
    fill(root)
    real, names = Store.read, list[str]()

    def read(store: Store, name: str) -> bytes | None:
        names.append(name)
        if len(names) == failing:
            raise EnvironmentFault(f"could not read {store.url}/{name}", "503", "run it again", transient=True)
        return real(store, name)

    failing = 0
    monkeypatch.setattr(Store, "read", read)
    assert verify_root(root, (), ()).problems == ()
    for failing in range(1, len(names) + 1):  # noqa: B007
        names.clear()
        with pytest.raises(EnvironmentFault, match="could not read"):
            verify_root(root, (), ())


def requests_of(place: Place, name: str) -> range:
    """The numbers of requests to try: all when long, otherwise one of eight, which differ by the fault."""
    first, step = (0, 1) if IS_LONG else (list(FAULTS).index(name) % 8, 8)
    return range(first, place.store.requests, step)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("act", ["push", "promote", "rollback", "attest_file", "remove"])
def test_a_fault_at_a_request_of_a_change(
    place: Place, act: str, name: str, record_property: Callable[[str, object], None]
) -> None:
    fault, do = FAULTS[name], ACTS[act]
    fill(as_new(), act)
    place.keep()
    before = live(as_new())
    assert not isinstance(place.ask(do), AifxError)
    tried, after, entries = requests_of(place, name), live(as_new()), said(as_new())
    for at in tried:
        place.restore()
        ended = place.ask(do, fault, at)
        if isinstance(ended, AifxError):
            check_error(ended, fault)
        check_damage(place, is_done=not isinstance(ended, AifxError))
        assert live(as_new()) in (before, after)
        assert not isinstance(place.ask(do), AifxError)
        assert said(as_new()) == entries
        check_whole(as_new())
    record_property("faults of a store in changes of a registry", len(tried))
