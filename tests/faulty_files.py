"""Calls of the operating system below one folder that fail on demand, within this process.

    with failing(folder, at=7) as calls:    # the eighth call below `folder` raises EIO
        ...
    with killed(folder, at=7):              # the process is killed before its eighth change below `folder`
        ...
    kill_at_each_change(folder, prepare, write, check)    # before each change that `write` makes, one after the other

Calls of threads count, too. Python's calls only: what TensorStore does in C++ is not seen here.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import io
import itertools
import os
import shutil
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock


class Calls:
    """The calls so far.

    Args:
        at: which call fails, from 0 on; None counts only.
        number: of the error; None kills the process instead.
        lasting: whether all later calls fail, too.
        only_changes: whether calls that open a file to read it are left out.
        loses_power: whether files lose what no fsync has put on the disk, when the process is killed.
    """

    def __init__(
        self,
        folder: Path,
        at: int | None,
        number: int | None,
        lasting: bool,
        only_changes: bool,
        loses_power: bool = False,
    ) -> None:
        self.folder, self.at, self.number, self.lasting = str(folder), at, number, lasting
        self.only_changes, self.loses_power = only_changes, loses_power
        self.made: list[str] = []
        self.durable: dict[int, int] = {}  # bytes on the disk of each file that was written, by its inode
        self._lock = threading.Lock()

    @property
    def failed(self) -> str | None:
        """The call that failed first."""
        return self.made[self.at] if self.at is not None and self.at < len(self.made) else None

    def pass_by(self, call: str, path: Any) -> bool:
        """Count a call, if it is below the folder. Raises OSError if it is its turn."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif not isinstance(path, str | bytes | os.PathLike):
            return False
        path = os.fsdecode(path)
        if not path.startswith(self.folder):
            return False
        with self._lock:
            self.made.append(f"{call} {path}")
            turn = len(self.made) - 1
        if self.at is not None and (turn == self.at or (self.lasting and turn > self.at)):
            if self.number is None:
                if self.loses_power:
                    self.lose_power()
                os.kill(os.getpid(), signal.SIGKILL)
            unnamed = call in ("write", "fsync", "fdatasync")  # as the real ones are
            raise OSError(self.number, os.strerror(self.number), *([] if unnamed else [path]))
        return True

    def flushed(self, handle: int) -> None:
        """Note that all that a file has is on the disk."""
        found = os.fstat(handle)
        self.durable[found.st_ino] = found.st_size

    def lose_power(self) -> None:
        """Cut each file to what is on the disk. Names of files stay: a file system may store them before the data."""
        for path in Path(self.folder).rglob("*"):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size > self.durable.get(found.st_ino, found.st_size):
                os.truncate(path, self.durable[found.st_ino])


@contextmanager
def failing(
    folder: Path, at: int | None = None, *, number: int = errno.EIO, lasting: bool = False, only_changes: bool = False
) -> Iterator[Calls]:
    """Count `os.open`, `open`, `write`, `os.fsync`, `os.rename` and the like below `folder`, and fail one."""
    with _watched(Calls(folder, at, number, lasting, only_changes)) as calls:
        yield calls


@contextmanager
def killed(folder: Path, at: int | None = None, *, loses_power: bool = False) -> Iterator[Calls]:
    """Count what changes something below `folder`, and kill this process before one of these calls.

    The files are then as after the call before it. Calls that open a file to read it are not counted.

    Args:
        loses_power: cut each file that was written to the bytes that an fsync had put on the disk.
    """
    with _watched(Calls(folder, at, None, lasting=False, only_changes=True, loses_power=loses_power)) as calls:
        yield calls


@contextmanager
def _watched(calls: Calls) -> Iterator[Calls]:
    are_changes = calls.only_changes

    def counted(name: str, place: int = 0) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if are_changes and name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            path, folder = args[place], kwargs.get("dst_dir_fd", kwargs.get("dir_fd"))
            is_below = calls.pass_by(
                name, path if folder is None else f"{os.readlink(f'/proc/self/fd/{folder}')}/{path}"
            )
            if name in ("fsync", "fdatasync") and is_below:
                calls.flushed(path)
                return None  # `Calls` knows what a loss of power would leave, and disks take their time
            found = real(*args, **kwargs)
            if name == "open" and is_below and args[1] & os.O_EXCL:
                calls.flushed(found)  # it is empty
            return found

        return call

    class Raw(io.FileIO):
        def __init__(self, file: Any, mode: str) -> None:
            super().__init__(file, mode)
            calls.flushed(self.fileno())  # it is empty, or what is appended to

        def write(self, data: Any) -> int:
            calls.pass_by("write", self.fileno())
            return super().write(data)

    real_open = builtins.open

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, int) and "w" in mode:  # of mkstemp
            pass
        elif isinstance(file, int) or not os.fspath(file).startswith(calls.folder):
            return real_open(file, mode, *args, **kwargs)
        if not are_changes or set(mode) & set("wax+"):
            calls.pass_by("open", file)
        if not set(mode) & set("wax+"):
            return real_open(file, mode, *args, **kwargs)
        buffered = io.BufferedWriter(Raw(file, mode.replace("b", "").replace("t", "")))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8", write_through=True)

    places = {"open": 0, "write": 0, "fsync": 0, "fdatasync": 0, "rename": 1, "replace": 1, "mkdir": 0}
    if are_changes:
        places |= {"link": 1, "unlink": 0, "rmdir": 0, "ftruncate": 0}
    patches = [mock.patch.object(os, name, counted(name, place)) for name, place in places.items()]
    patches += [mock.patch.object(builtins, "open", opened), mock.patch.object(io, "open", opened)]
    for patch in patches:
        patch.start()
    try:
        yield calls
    finally:
        for patch in patches:
            patch.stop()


def forked(function: Callable[[], None]) -> int:
    """Run a function in a process of its own, which has no thread yet. Returns its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at_each_change(
    folder: Path,
    prepare: Callable[[Path], None],
    write: Callable[[Path], None],
    check: Callable[[Path, Path], None],
    *,
    below: str = "",
    first: int = 0,
    every: int = 1,
    loses_power: bool = False,
) -> int:
    """Kill `write` before and after each change that it makes, one after the other. Returns the number of kills.

    Each of the functions runs in a process of its own. This process must not have a thread.

    Args:
        folder: which is empty.
        prepare: makes the folder that it is given. Each `write` changes a copy of it, at one and the same path.
        check: gets the folder after a kill, and the one that an undisturbed `write` made. Raises if a kill did harm.
        below: part of the folder in which changes count.
        first: number of the first change before which it is killed; then each `every` changes.
        loses_power: as of `killed`.
    """
    base, calm, root, modules = (folder / name for name in ("base", "calm", "root", "modules"))
    assert forked(lambda: prepare(base)) == 0
    shutil.copytree(base, root)

    def undisturbed() -> None:
        write(root)
        modules.write_text("\n".join(sys.modules))

    assert forked(undisturbed) == 0
    root.rename(calm)
    for module in modules.read_text().split():  # once, instead of in each process
        with suppress(ImportError):
            importlib.import_module(module)

    def disturbed(at: int) -> None:
        with killed(root / below, at, loses_power=loses_power) as calls:
            write(root)
        if loses_power:
            calls.lose_power()

    for kills, at in enumerate(itertools.count(first, every)):
        shutil.copytree(base, root)
        code = forked(lambda at=at: disturbed(at))
        if code == 0:
            assert not loses_power or forked(lambda: check(root, calm)) == 0, "after the last change"
            return kills
        assert code == -signal.SIGKILL, f"change {at}"
        assert forked(lambda: check(root, calm)) == 0, f"killed before change {at}"
        shutil.rmtree(root)
    raise AssertionError


def damage_arrays(checkpoint: Path) -> None:
    """Flip bits in every file of arrays. Which of them holds weights, and which the optimizer's state, differs."""
    for path in (checkpoint / "state" / "d").iterdir():
        data = bytearray(path.read_bytes())
        for at in range(len(data) // 2, len(data), 16):
            data[at] ^= 1
        path.write_bytes(data)
