"""Errors of the operating system: found within any exception, and named after the file that they concern."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EINTR, errno.EAGAIN})
"""Errors that a disk or a network file system may report once and not again."""

PASSING = FULL | TRANSIENT | {errno.EROFS}
"""Errors that may pass while a long run waits: somebody makes room, or mounts the file system again."""

UNREADABLE = TRANSIENT | {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of reading a file that say nothing about its content."""

_NETWORK = {errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EBUSY}

_STATUSES = {408, 425, 429, 500, 502, 503, 504}
"""Of HTTP: the server may answer otherwise later."""

_OF_CLIENTS = {
    "socket.gaierror",
    "httpx.TimeoutException",
    "httpx.NetworkError",
    "httpx.RemoteProtocolError",
    "httpx.ProxyError",
    "requests.ConnectionError",
    "requests.Timeout",
    "botocore.ConnectionError",
    "botocore.HTTPClientError",
    "aiohttp.ClientConnectionError",
    "aiohttp.ClientPayloadError",
}
"""Exceptions of the network, by package and name, so that no client is imported to ask."""

_UNWRITABLE = {errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.ETXTBSY, errno.ENXIO, errno.ELOOP}

REFUSALS = FULL | UNREADABLE | _UNWRITABLE
"""Errors of the machine, which no change in aifx would fix."""

# TensorStore raises ValueErrors that end so: "Failed to fsync file: Input/output error [os_error_code='5']".
_CODE = re.compile(r"\[os_error_code='(\d+)'")
# NumPy writes an array so: "144000 requested and 3040 written", when the disk is full.
_SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written$")
_TYPED_ONLY = {errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.ENXIO, errno.EPERM}  # whose text may mean other things
_TEXTS = {os.strerror(number): number for number in sorted(REFUSALS - _TYPED_ONLY)}
_TEXT = re.compile("|".join(re.escape(text) for text in sorted(_TEXTS, key=len, reverse=True)))


def errno_of(error: BaseException) -> int | None:
    """Return the errno that `error` itself reports, by type or by text."""
    if isinstance(error, OSError):
        if error.errno is None and _SHORT_WRITE.match(str(error)):
            return errno.ENOSPC
        return error.errno if error.errno in REFUSALS else None
    try:
        text = str(error)
    except Exception:  # an exception of somebody else's
        return None
    if match := _CODE.search(text):
        number = int(match.group(1))
        return number if number in REFUSALS else None
    match = _TEXT.search(text)
    return _TEXTS[match.group()] if match else None


def refusal_in(error: BaseException) -> int | None:
    """Return the first errno among `error`, its causes and its group."""
    return next((number for cause in causes(error) if (number := errno_of(cause)) is not None), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception, those grouped in it, and their causes."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop(0)
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += getattr(found, "exceptions", ())
            waiting += [found.__cause__, None if found.__suppress_context__ else found.__context__]


@contextmanager
def naming(path: Path, *, keeps_names: bool = False) -> Iterator[None]:
    """Name `path` in an OSError that names no file, as those of fsync and write do, or only a temporary one.

    Args:
        keeps_names: leave errors as they are that name a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (keeps_names and error.filename is not None):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def is_passing(error: BaseException | None) -> bool:
    """Whether an exception, or one that it was raised for, is of a kind that passes with nothing changed here.

    That is a fault of the network, an overloaded server, a full disk, or something that another process holds. Causes
    count although `raise ... from None` hides them.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if (own := getattr(error, "transient", None)) is not None:  # an AifxError decides for its own causes
            return bool(own)
        if _is_passing(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if (errno_of(error) or getattr(error, "errno", None)) in FULL | TRANSIENT | _NETWORK:
        return True
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if names & _OF_CLIENTS:
        return True
    response = getattr(error, "response", None)  # of httpx and requests; of botocore it is a dictionary
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _STATUSES
    return getattr(response, "status_code", getattr(error, "status", None)) in _STATUSES


def in_brief(error: BaseException) -> str:
    """An AifxError on one line: the failure and its reason."""
    return ": ".join(line.strip() for line in str(error).splitlines()[:2])


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, cut at 200 characters."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) <= 200 else text[:197] + "..."
