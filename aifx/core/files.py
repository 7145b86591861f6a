"""Opening, reading, replacing and locking files in folders whose content may come from somebody else.

A run can be a copy of a stranger's, and a temporary folder can hold names that others planted. Functions here open
regular files only. They follow no link below the folder that the caller trusts (`below`), they never wait for a FIFO,
and they read no more than a limit. Files that must be whole or absent are written under an unpredictable name, and
then renamed or, if nothing may be replaced, linked.

A process that uses a folder locks the file `.lock` in it (`holding`). The kernel releases the lock when the process
ends, however it ends. Folders whose content aifx executes or trusts are private (`make_private`).
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import pwd
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, TypeAlias

from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.os_errors import naming

DOCUMENT_LIMIT = 64 * 2**20
"""Bytes that aifx reads of a file that it holds in memory whole: a configuration, a report, a manifest."""

RECORDS_LIMIT = 2**30
"""Bytes that aifx reads of a file of JSON lines, which grows with a run."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
"""Names of the files that `replace_file` renames, and `create_file` links, once they are whole."""

_Publish: TypeAlias = Callable[[str, Path, int], None]
"""Called with a temporary name, the path that gets its file, and the descriptor of the folder of both."""

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""Errors of file systems that have no hard links: FAT refuses one with EPERM, CIFS and FUSE with any of these."""

_STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/null", "/dev/full", "/dev/tty")
_STREAM_FOLDERS = ("/dev/fd", "/proc/self/fd")


class NotExclusive(EnvironmentFault):
    """A file system or a store cannot create a file exclusively."""


class UnsafeFile(EnvironmentFault):
    """A file is a link, a FIFO or a device, or larger than aifx reads."""


def open_file(path: Path, flags: int = os.O_RDONLY, *, below: Path | None = None, follow: bool = False) -> int:
    """Return a descriptor of the regular file at `path`.

    Args:
        flags: as `os.open` takes them.
        below: the folder that is trusted; no part of `path` below it may be a link. The file's own folder by default.
        follow: accept a link as the last part, for files that the user named or that belong to a trusted project.

    Raises UnsafeFile for a link, a FIFO, a device or a folder (with `follow`, IsADirectoryError), OSError as `os.open`
    does.
    """
    with _folder_of(path, below) as folder:
        return _open_in(folder, path.parent, path.name, flags, follow=follow)


def _open_in(folder: int, parent: Path, name: str, flags: int, *, follow: bool = False) -> int:
    """`open_file` in a folder that is open. Its path is for messages."""
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # opening a FIFO does not wait for its other end
    try:
        handle = os.open(name, flags if follow else flags | os.O_NOFOLLOW, 0o666, dir_fd=folder)
    except OSError as error:
        raise _explained(error, parent / name) from None
    try:
        kind = os.fstat(handle).st_mode
        if not stat.S_ISREG(kind):
            _check_regular(parent / name, kind, is_named=follow)
    except BaseException:
        os.close(handle)
        raise
    return handle


def read_file(path: Path, *, below: Path | None = None, limit: int = DOCUMENT_LIMIT, follow: bool = False) -> bytes:
    """Return the content of a regular file. Raises UnsafeFile, also for more than `limit` bytes, and OSError."""
    with open(open_file(path, below=below, follow=follow), "rb") as file:
        return _read(file, path.parent, path.name, limit)


def read_end(path: Path, limit: int) -> bytes:
    """Return the last `limit` bytes of a regular file, or all of a shorter one. Raises UnsafeFile, OSError."""
    with open(open_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - limit))
        return file.read(min(max(size, 1 << 16), limit))  # a file of /proc has no size


def read_many(folder: Path, names: Iterable[str], *, limit: int = DOCUMENT_LIMIT) -> Iterator[tuple[str, bytes]]:
    """The names and contents of those of some files in a folder that are there. A folder of that name is none.

    The folder is opened once: of many small files, opening takes longest. Raises as `read_file`.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        for name in names:
            try:
                with open(_open_in(handle, folder, name, os.O_RDONLY), "rb") as file:
                    data = _read(file, folder, name, limit)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except UnsafeFile:
                if stat.S_ISDIR(os.lstat(folder / name).st_mode):
                    continue
                raise
            yield name, data
    finally:
        os.close(handle)


def read_input(path: Path, *, limit: int = DOCUMENT_LIMIT) -> bytes:
    """Return the content of a file that the user named, through links, or of a stream such as /dev/stdin.

    Raises UnsafeFile for a FIFO, a device or more than `limit` bytes, OSError.
    """
    if not is_stream(path):
        return read_file(path, limit=limit, follow=True)
    with path.open("rb") as file:
        return _read(file, path.parent, path.name, limit)


def _read(file: IO[bytes], parent: Path, name: str, limit: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    data = b"" if size > limit else file.read(size + 1) or b""  # None of a file of /proc that would wait
    if len(data) > size:  # it grows, or it is in /proc and has no size. Python makes room for all that may be read.
        data += file.read(limit + 1 - len(data)) or b""
    if max(size, len(data)) > limit:
        what, why = f"{parent / name} is too large", f"aifx reads {limit // 2**20} MiB of such a file"
        raise UnsafeFile(what, why, f"ls -l {parent / name}")
    return data


def make_folders(path: Path, *, below: Path) -> None:
    """Create `path` and the folders between it and `below`, which may exist. Raises UnsafeFile for a link, OSError."""
    below.mkdir(parents=True, exist_ok=True)
    for folder in reversed([path, *path.parents][: len(path.relative_to(below).parts)]):
        with _folder_of(folder, below) as parent:
            try:
                os.mkdir(folder.name, dir_fd=parent)
            except FileExistsError:
                check_folder(folder)


def check_folder(path: Path) -> None:
    """Raise UnsafeFile if `path` exists and is anything but a folder, a link to one included."""
    with suppress(FileNotFoundError):
        kind = path.lstat().st_mode
        if not stat.S_ISDIR(kind):
            raise _not_regular(path, kind, wanted="a folder")


def check_tree(path: Path, *, deep: bool = True) -> None:
    """Raise UnsafeFile if `path` or, with `deep`, a folder in it holds a FIFO, a device or a link that leaves it.

    Trackers make links to their newest folder.
    """
    check_folder(path)
    inside = path.resolve()
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            entry = Path(folder, name)
            kind = entry.lstat().st_mode
            if stat.S_ISLNK(kind) and entry.resolve().is_relative_to(inside):
                continue
            if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
                raise _not_regular(entry, kind)
        if not deep:
            return


def replace_file(path: Path, data: bytes, *, below: Path | None = None) -> None:
    """Put `data` at `path`, as `replacing` does."""
    with naming(path), _publishing(path, below, _rename) as file:
        file.write(data)


def replacing(path: Path, *, below: Path | None = None) -> AbstractContextManager[IO[bytes]]:
    """A stream whose content is put at `path` when the block ends, or not at all if it raises.

    The content goes to a new file beside it: fsync, rename, fsync of the folder. A link at `path` is replaced; nothing
    is written through it. Raises UnsafeFile for a link above it or a folder at `path`, OSError.
    """
    return _publishing(path, below, _rename)


def create_file(path: Path, data: bytes, *, below: Path | None = None) -> bool:
    """Put `data` at `path` if nothing is there. Returns whether this call did, among any number of machines.

    The data goes to a new file beside it: fsync, a hard link at `path`, unlink, fsync of the folder, which also makes
    durable what another call put there. Raises UnsafeFile for a link above it, or a link, folder or device at `path`;
    NotExclusive for a file system without hard links; OSError.
    """
    # A hard link fails if the name is taken, in one step of the file system, and the file that it names is whole and
    # durable already. O_EXCL would be exclusive as well, but others would see an empty file until it is written. A
    # client of NFS may have made the link although it reports that the name is taken (its request was sent twice), so
    # the file behind the name decides. man 2 open advises the same for lock files, by the number of links (O_EXCL).
    is_new = False

    def link(temporary: str, path: Path, folder: int) -> None:
        nonlocal is_new
        try:
            os.link(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            is_new = True
        except FileExistsError:
            with suppress(FileNotFoundError):  # deleted just now
                there, mine = (os.stat(name, dir_fd=folder, follow_symlinks=False) for name in (path.name, temporary))
                _check_regular(path, there.st_mode, is_named=False)
                # A client of NFS that got no answer asks again, and what it made refuses it.
                is_new = os.path.samestat(there, mine)
        except OSError as e:
            if e.errno not in _NO_HARD_LINKS:
                raise
            why = f"its file system refused a hard link: {e.strerror}"
            hint = f"move {path.parent} to a file system with hard links, such as ext4, XFS, Lustre or NFS"
            raise NotExclusive(f"aifx cannot create {path} exclusively", why, hint) from e
        os.unlink(temporary, dir_fd=folder)

    with naming(path), _publishing(path, below, link) as file:
        file.write(data)
    return is_new


def _rename(temporary: str, path: Path, folder: int) -> None:
    """Move a file to `path`, in place of one that may be there."""
    try:
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except IsADirectoryError as e:
        raise _not_regular(path, stat.S_IFDIR) from e


@contextmanager
def _publishing(path: Path, below: Path | None, publish: _Publish) -> Iterator[IO[bytes]]:
    """A stream into a temporary file beside `path`, which `publish` moves there when the block ends."""
    with _folder_of(path, below) as folder:
        with naming(path):
            handle, temporary = _create_locked(folder, path.name)
        file = open(handle, "wb")  # noqa: SIM115  # closing it after a failed write fails again, without a name
        try:
            yield file
            with naming(path):
                file.flush()
                os.fsync(handle)
                publish(temporary, path, folder)
                file.close()
        except BaseException:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        # Also if the name was taken: the call that took it may have been killed before it came here.
        with naming(path):
            os.fsync(folder)


def _create_locked(folder: int, name: str) -> tuple[int, str]:
    """A new temporary file for `name`. Its lock says that its process lives; `held_temporary` asks for it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        temporary = f".{name}.{secrets.token_hex(6)}.tmp"
        handle = os.open(temporary, flags, 0o666, dir_fd=folder)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # removed before it was locked


def remove_temporary(folder: Path) -> None:
    """Remove temporary files that killed processes left in `folder`, as far as the disk allows."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_temporary(path.name):
                with suppress(OSError), held_temporary(path):
                    path.unlink()


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that `replace_file` or `create_file` publishes once it is whole."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def held_temporary(path: Path) -> Iterator[None]:
    """Hold the temporary file at `path`. Raises OSError, which is a BlockingIOError if its process lives."""
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # NFS locks what can be written
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def write_output(path: Path, data: bytes) -> None:
    """Put `data` where the user asked for it: a new file, whole or not at all, or a stream such as /dev/stdout.

    Raises UnsafeFile for a link, FIFO or device that is no stream of this process, OSError.
    """
    if is_stream(path):
        with path.open("wb") as file:
            file.write(data)
        return
    check_output(path)
    replace_file(path, data)


def open_output(path: Path) -> int:
    """Return a descriptor that overwrites the file or stream `path`, which the user named, from its beginning."""
    if is_stream(path):
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    check_output(path)
    handle = open_file(path, os.O_WRONLY | os.O_CREAT)
    os.ftruncate(handle, 0)
    return handle


def check_output(path: Path) -> None:
    """Raise UnsafeFile if `path` exists and is not a regular file of its own."""
    with suppress(FileNotFoundError):
        _check_regular(path, path.lstat().st_mode)


def is_stream(path: Path) -> bool:
    """Whether `path` names a stream of this process or a device such as /dev/null, which only the system can make."""
    absolute = os.path.abspath(path)
    return absolute in _STREAMS or os.path.dirname(absolute) in _STREAM_FOLDERS


@contextmanager
def _folder_of(path: Path, below: Path | None) -> Iterator[int]:
    """A descriptor of the folder that holds `path`, reached from `below` without following a link."""
    start = path.parent if below is None else below
    parts = path.parent.relative_to(start).parts
    if ".." in parts:
        raise ValueError(f"{path} is not below {start}")
    handle = os.open(start, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            try:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
            except OSError as error:
                raise _explained(error, path) from None
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _explained(error: OSError, path: Path) -> OSError | UnsafeFile:
    """The error with the whole path, or UnsafeFile if a part of the path is what the error is about."""
    for part in (path, *path.parents) if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR) else ():
        try:
            kind = part.lstat().st_mode
        except OSError:
            continue
        if stat.S_ISLNK(kind) or (part == path and not stat.S_ISREG(kind)):
            return _not_regular(part, kind)
    return OSError(error.errno, error.strerror, str(path))


def _check_regular(path: Path, kind: int, *, is_named: bool = True) -> None:
    """Raise UnsafeFile for anything but a regular file, IsADirectoryError for a folder that the user named."""
    if stat.S_ISDIR(kind) and is_named:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind):
        raise _not_regular(path, kind)


def _not_regular(path: Path, kind: int, wanted: str = "a regular file") -> UnsafeFile:
    form = stat.S_IFMT(kind)
    found = f"a link to {os.readlink(path)}" if form == stat.S_IFLNK else _KINDS.get(form, "no regular file")
    return UnsafeFile(f"{path} is {found}", f"aifx expects {wanted} here", f"ls -l {path}")


_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
}


def make_private(folder: Path) -> None:
    """Make a folder and the missing ones above it with mode 0700, whatever the umask.

    Raises EnvironmentFault if another user can write there, OSError if it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with suppress(FileExistsError):  # made meanwhile by another process, or a link to nothing
            path.mkdir(0o700)
            path.chmod(0o700)
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder))
    check_private(folder)


def check_private(folder: Path) -> None:
    """Raise EnvironmentFault if another user can write in a folder. One that is absent or cannot be seen passes."""
    try:
        found = folder.stat()
    except OSError:
        return
    what = f"the cache folder {folder} is not used"
    if found.st_uid not in (os.geteuid(), 0):  # root can write everywhere anyhow
        why = f"it belongs to {user_name(found.st_uid)}, whose compiled programs would run as you"
        raise EnvironmentFault(what, why, "AIFX_CACHE_DIR=/path/to/a/folder/of/your/own, then run it again")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        who = "everyone" if found.st_mode & stat.S_IWOTH else "its group"
        why = f"{who} can write there, and programs compiled by others would run as you"
        raise EnvironmentFault(what, why, f"chmod go-w {folder}")


def user_name(uid: int) -> str:
    """The name and number of a user, for messages."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


LOCK = ".lock"
LOCK_LOOK_S = 0.05
REMOVED = ".removed-"
"""The beginning of the name of a folder whose removal was interrupted."""


class FolderBusy(AifxError):
    """Another process holds a folder."""

    _transient = True


@contextmanager
def holding(folder: Path, what: str, purpose: str, *, shared: bool = False, makes: bool = True) -> Iterator[None]:
    """Hold a folder. Raises FolderBusy if another process holds it, OSError.

    Args:
        what: the folder in messages, such as "data set corpus".
        purpose: what this process does, as it follows "process 123", such as "makes a version of it".
        shared: together with others that hold it so.
        makes: make the folder if it is not there, instead of raising FileNotFoundError.
    """
    handle = _lock(folder, what, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, makes)
    try:
        if not shared:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} {purpose}\n".encode(), 0)
        yield
    finally:
        if not shared:
            with suppress(OSError):
                os.ftruncate(handle, 0)
        os.close(handle)


@contextmanager
def exclusive(path: Path, limit_s: float = math.inf, what: str = "") -> Iterator[int]:
    """Wait until nobody else holds the lock file `path`, then hold it alone, by a descriptor. The file stays.

    Raises FolderBusy after `limit_s`, saying `what`.
    """
    handle, until = open_file(path, os.O_RDWR | os.O_CREAT), time.monotonic() + limit_s
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if math.isinf(limit_s) else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    why = f"another process has held {path} for {limit_s:g} s"
                    hint = f"fuser -v {path}    (then end that process, and run the same command again)"
                    raise FolderBusy(what or f"{path} is in use", why, hint) from None
            time.sleep(LOCK_LOOK_S)
        yield handle
    finally:
        os.close(handle)


def _lock(folder: Path, what: str, kind: int, makes: bool) -> int:
    """A descriptor of the folder's lock file, which this process has locked."""
    while True:
        if makes:
            _make_folder(folder)
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if makes:
                continue  # removed before it was held
            raise
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(folder / LOCK)):
                    return handle
        except BlockingIOError:
            holder = os.read(handle, 100).decode(errors="replace").strip() or "another process uses it"
            os.close(handle)
            raise FolderBusy(f"{what} is in use", holder, "run the same command again when it has ended") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the holder before has removed the folder


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises UnsafeFile if something else is at the place of one, OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        what = "is a link to nothing" if there.is_symlink() else "is not a folder"
        raise UnsafeFile(f"{there} {what}", f"aifx works in the folder {folder}", f"ls -l {there}") from None


def remove_folder(folder: Path, what: str, hidden: Path | None = None) -> None:
    """Delete a folder, which is whole or gone whenever this is interrupted, unless a process holds it.

    Args:
        what: the folder in messages.
        hidden: a new path that it gets before it is deleted; by default one beside it that begins with REMOVED.

    Raises FolderBusy, OSError; FileNotFoundError if it is not there.
    """
    if not folder.name.startswith(REMOVED):
        hidden = hidden or folder.with_name(f"{REMOVED}{secrets.token_hex(6)}")
        with holding(folder, what, "deletes it", makes=False):
            os.rename(folder, hidden)
        folder = hidden
    while folder.exists():  # on NFS a folder with an open file cannot go, so nobody holds it here
        with suppress(FileNotFoundError):  # another process deletes it, too
            shutil.rmtree(folder)
