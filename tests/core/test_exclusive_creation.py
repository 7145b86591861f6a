"""`Store.create`: one of any number of callers creates a file, on a disk and in memory."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from faulty_files import killed
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import LocalFileSystem

from aifx.core.errors import EnvironmentFault, UsageError
from aifx.core.files import UnsafeFile, is_temporary
from aifx.core.stores import BLOCK_BYTES, Store, open_store

HERE = Path(__file__).parent


def in_processes(what: str, folder: Path) -> Any:
    environ = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, HERE / "creating_processes.py", what, folder]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(f"memory://{tmp_path}" if request.param == "memory" else str(tmp_path))


def test_the_first_call_creates_the_file(store: Store) -> None:
    assert store.create("names/first", b"1")
    assert not store.create("names/first", b"2")
    assert store.read("names/first") == b"1"
    assert store.below("names").create("empty", b"")
    assert store.read("names/empty") == b""
    assert sorted(store.files("names")) == ["empty", "first"]
    assert (store.files(), store.folders()) == ([], ["names"])
    with pytest.raises(UsageError):
        store.create("large", bytes(BLOCK_BYTES + 1))


def test_one_of_eight_processes_creates_each_file(tmp_path: Path) -> None:
    winners = in_processes("race", tmp_path)
    assert [len(numbers) for numbers in winners] == [1] * 10


def test_a_kill_at_each_change_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    changes = in_processes("kills", tmp_path)
    assert changes == ["mkdir", "mkdir", "open", "open", "write", "fsync", "link", "unlink", "fsync"]


def test_what_another_call_put_there_is_durable_too(tmp_path: Path) -> None:
    """A call that was killed before it synced the folder is asked again, and answers False."""
    store = open_store(str(tmp_path))
    store.create("entry", b"1")
    with killed(tmp_path) as calls:
        assert not store.create("entry", b"1")
    assert calls.made[-1] == f"fsync {tmp_path}"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


@pytest.mark.parametrize(
    "occupy",
    [Path.mkdir, lambda path: path.symlink_to("elsewhere"), os.mkfifo],
    ids=["a folder", "a link", "a FIFO"],
)
def test_anything_but_a_file_is_in_the_way(tmp_path: Path, occupy: Callable[[Path], None]) -> None:
    occupy(tmp_path / "entry")
    with pytest.raises(UnsafeFile):
        open_store(str(tmp_path)).create("entry", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, number: int) -> None:
    with (
        mock.patch.object(os, "link", side_effect=OSError(number, os.strerror(number))),
        pytest.raises(EnvironmentFault, match="hard link") as refused,
    ):
        open_store(str(tmp_path)).create("entry", b"1")
    assert str(tmp_path / "entry") in refused.value.what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_mine", [True, False])
def test_a_server_of_files_may_refuse_what_it_has_done(tmp_path: Path, is_mine: bool) -> None:
    """As NFS does if its answer was lost and its client asked again."""
    real = os.link

    def lost(source: str, target: str, **folders: Any) -> None:
        real(source, target, **folders)
        real(source, target, **folders)  # raises FileExistsError

    store = open_store(str(tmp_path))
    if not is_mine:
        store.create("entry", b"1")
    with mock.patch.object(os, "link", lost):
        assert store.create("entry", b"1") is is_mine
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


class Overwriting(MemoryFileSystem):  # type: ignore[misc]
    """A store that ignores the condition."""

    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value)


def test_a_store_that_ignores_the_condition_is_refused() -> None:
    store = Store("memory://bucket/entries", Overwriting(), "/bucket/entries")
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match="If-None-Match") as refused:
            store.create("entry", b"1")
        assert store.url in refused.value.what
        assert Overwriting.store == {}


class Keeping(MemoryFileSystem):  # type: ignore[misc]
    """A store that allows no deletion."""

    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def rm(self, path: str, **kwargs: Any) -> None:
        raise PermissionError(f"deletion of {path}")


def test_a_probe_that_cannot_be_deleted_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    store = Store("memory://bucket/entries", Keeping(), "/bucket/entries")
    assert store.create("entry", b"1")
    assert store.create("other", b"1")
    (probe,) = set(store.files()) - {"entry", "other"}
    assert is_temporary(probe)
    (warning,) = caplog.messages
    assert f"{store.url}/{probe}" in warning


def test_a_client_that_looks_before_it_creates_is_refused(tmp_path: Path) -> None:
    """As all do that have fsspec's own `pipe_file`: two of them can both find the name free."""
    store = Store(f"arrow://{tmp_path}", ArrowFSWrapper(LocalFileSystem()), str(tmp_path))
    store.fs.pipe_file(f"{tmp_path}/there", b"1", mode="create")
    with pytest.raises(FileExistsError):
        store.fs.pipe_file(f"{tmp_path}/there", b"2", mode="create")
    with pytest.raises(EnvironmentFault) as refused:
        store.create("entry", b"1")
    assert store.url in refused.value.what
    assert store.files() == ["there"]
