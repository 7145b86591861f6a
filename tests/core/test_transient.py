"""Errors after which the same command may succeed, and those after which it cannot."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import httpx
import pytest

from aifx.core.errors import AifxError, EnvironmentFault, ExitCode, RunBusy, UsageError, could_not, error_of
from aifx.core.files import FolderBusy
from aifx.core.stores import open_store
from aifx.registry.ledger import LostRace


def raised(cause: BaseException, *, hidden: bool) -> AifxError:
    """What a command makes of an exception."""
    try:
        try:
            raise cause
        except Exception as e:
            raise EnvironmentFault("a", str(e)) from (None if hidden else e)
    except AifxError as error:
        return error


def answered(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://a")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


def of_s3(status: int) -> Exception:
    error = Exception("a")
    error.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("hidden", [False, True])
def test_the_cause_of_an_error_says_whether_it_passes(hidden: bool) -> None:
    passing = [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError(errno.EHOSTUNREACH, "a"),
        OSError(errno.EIO, "a"),
        OSError(errno.ESTALE, "a"),
        of_s3(503),
        ConnectionRefusedError(errno.ECONNREFUSED, "a"),
        TimeoutError(),
        httpx.ConnectError("a"),
        httpx.ReadTimeout("a"),
        answered(503),
        answered(429),
        ValueError("Failed to write: No space left on device [os_error_code='28']"),
    ]
    staying = [
        FileNotFoundError(errno.ENOENT, "a"),
        PermissionError(errno.EACCES, "a"),
        OSError(errno.EROFS, "a"),
        httpx.UnsupportedProtocol("a"),
        answered(404),
        of_s3(404),
        ValueError("a"),
    ]
    assert [raised(cause, hidden=hidden).transient for cause in passing] == [True] * len(passing)
    assert [raised(cause, hidden=hidden).transient for cause in staying] == [False] * len(staying)


def test_what_another_process_holds_passes_and_a_mistake_stays() -> None:
    assert all(error("a").transient for error in (RunBusy, FolderBusy, LostRace))
    assert not AifxError("a").transient
    assert not UsageError("a", "No space left on device").transient
    assert could_not("write a", OSError(errno.ENOSPC, "a"), errno.ENOSPC).transient
    assert not could_not("write a", OSError(errno.EROFS, "a"), errno.EROFS).transient
    assert RunBusy("a").document()["transient"] is True


def test_an_error_between_two_passes_on_what_its_own_cause_says() -> None:
    between = ValueError("a")
    between.__cause__ = ConnectionResetError()
    assert raised(between, hidden=False).transient
    decided = AifxError("a", transient=False)
    decided.__cause__ = ConnectionResetError()
    assert not raised(decided, hidden=False).transient
    circle = ValueError("a")
    circle.__context__ = KeyError("b")
    circle.__context__.__context__ = circle
    assert not raised(circle, hidden=False).transient


@pytest.mark.parametrize("transient", [False, True])
def test_a_document_says_it_of_an_error_of_another_process(transient: bool) -> None:
    again = error_of(AifxError("a", "b", "c", exit_code=ExitCode.PREEMPTED, transient=transient).document())
    assert (again.transient, again.exit_code, str(again)) == (transient, ExitCode.PREEMPTED, "a\nb\nhint: c")


def test_another_process_is_told_without_the_cause() -> None:
    again = pickle.loads(pickle.dumps(raised(ConnectionResetError(), hidden=False)))
    assert again.__cause__ is None
    assert again.transient


def test_a_store_that_cannot_be_written_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault) as caught:
        open_store(str(tmp_path / "file")).write("a", iter([b"a"]))
    assert not caught.value.transient
