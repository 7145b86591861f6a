"""Errors after which the same command may succeed, and those after which it cannot."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import httpx
import pytest

from aifx.core.errors import AifxError, EnvironmentFault, RunBusy, UsageError, could_not
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


@pytest.mark.parametrize("hidden", [False, True])
def test_the_cause_of_an_error_says_whether_it_passes(hidden: bool) -> None:
    passing = [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError(errno.EHOSTUNREACH, "a"),
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


def test_another_process_is_told_without_the_cause() -> None:
    again = pickle.loads(pickle.dumps(raised(ConnectionResetError(), hidden=False)))
    assert again.__cause__ is None
    assert again.transient


def test_a_store_that_cannot_be_written_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault) as caught:
        open_store(str(tmp_path / "file")).write("a", iter([b"a"]))
    assert not caught.value.transient
