"""Whatever a command can raise, as an error with three lines and an exit code."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aifx.core.errors import AifxError, EnvironmentFault, ExitCode, Terminated, could_not
from aifx.core.json_files import write_json
from aifx.core.os_errors import FULL, causes, errno_of, first_line
from aifx.core.redaction import REMOVED, redact, redact_arguments
from aifx.core.sanitize import escape_controls
from aifx.core.version import __version__

ERROR_FILE = "AIFX_ERROR_FILE"
"""The variable with the file for the document of the failure, which a line reads of a command without --json."""

_error_file = ""


def take_error_file() -> None:
    """Take the variable out of the environment: the file is of this process, and of none that it starts.

    A failure of an earlier process is removed: its caller went on, so it is not why the caller fails.
    """
    global _error_file
    _error_file = os.environ.pop(ERROR_FILE, "")
    if _error_file:
        with suppress(OSError, ValueError):
            if stat.S_ISREG(os.lstat(_error_file).st_mode):
                os.unlink(_error_file)


def write_error_file(failure: AifxError) -> None:
    """Write the document of a failure where `AIFX_ERROR_FILE` says."""
    if _error_file:
        with suppress(OSError, AifxError):
            write_json(Path(_error_file), {"error": failure.document()})


def print_traceback(error: BaseException) -> None:
    """The traceback on stderr if it is wanted: with `--debug`, or `AIFX_DEBUG` set to anything but 0."""
    if os.environ.get("AIFX_DEBUG", "0") not in ("", "0"):
        sys.stderr.write(escape_controls("".join(traceback.format_exception(error))))


def as_error(error: BaseException) -> AifxError:
    """The failure that an exception means. What nobody foresaw is a bug of ours and gets a report file."""
    if isinstance(error, AifxError):
        return error
    if isinstance(error, Terminated):
        return AifxError("interrupted", "SIGTERM", exit_code=ExitCode.PREEMPTED)
    if isinstance(error, KeyboardInterrupt):
        return AifxError("interrupted", exit_code=ExitCode.INTERRUPTED)
    if is_of_typer(error):
        from aifx.commands.console.typer_internals import failure_of

        return failure_of(error)
    for cause in causes(error):
        if known := _of_the_machine(cause):
            return known
    return _bug(error)


def is_of_typer(error: BaseException) -> bool:
    """Whether typer raised the error, which is known without importing typer."""
    return type(error).__module__.partition(".")[0] == "typer"


def _of_the_machine(error: BaseException) -> AifxError | None:
    number, text = errno_of(error), str(error)
    if number in FULL:
        hint = f"df -h {_folder(error)}; free some space, then run it again"
        return EnvironmentFault("the disk is full", text.splitlines()[0], hint)
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(words in text for words in _NO_MEMORY):
        return _out_of_memory(first_line(error) if text else "this machine has not enough memory")
    if number is not None:
        what, place = os.strerror(number).lower(), _place(error)
        return could_not(f"{place}: {what}" if place else what, error, number, place)
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return EnvironmentFault("the working directory is gone", text, "cd to a directory that exists")
    return None


_NO_MEMORY = ("RESOURCE_EXHAUSTED", "failed to map segment from shared object", "std::bad_alloc")
"""Messages of XLA, the loader of shared libraries and C++ about a lack of memory."""


def _out_of_memory(why: str) -> EnvironmentFault:
    from aifx.core.limits import address_space_limit

    if (space := address_space_limit()) is not None:
        why = f"{why}\nthis process may use {space / 2**20:.0f} MiB of address space (ulimit -v)"
        return EnvironmentFault("out of memory", why, "ulimit -v unlimited, then run it again")
    hint = "--set train.gradient_accumulation=2, or a smaller train.global_batch_size"
    return EnvironmentFault("out of memory", why, hint)


def _place(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return os.fsdecode(name) if isinstance(name, (str, bytes)) else ""


def _folder(error: BaseException) -> str:
    """The folder in which there is no room: of the file that is written, which may be gone, or the current one."""
    place = os.fsdecode(getattr(error, "filename2", None) or _place(error))
    path = Path(place or ".")
    return str(next((folder for folder in (path, *path.parents) if folder.is_dir()), "."))


def _bug(error: BaseException) -> AifxError:
    text = type(error).__name__ if _handles_rows() else " ".join(f"{type(error).__name__}: {error}".split())
    what = f"a bug in aifx: {text if len(text) <= 200 else text[:197] + '...'}"
    try:
        why = f"this is not your mistake; the details are in {_write_report(error)}"
        hint = "send that file to the people who maintain aifx; --debug shows the traceback"
    except OSError as fault:
        why = f"this is not your mistake; no report could be written ({fault})"
        hint = "run it again with --debug and send what it shows"
    return AifxError(what, why, hint, exit_code=ExitCode.BUG)


def _handles_rows() -> bool:
    """Whether the command is one of `aifx data`: its arguments and errors may quote personal data."""
    return next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "") == "data"


def _without_values(arguments: Sequence[str]) -> list[str]:
    """The names of the command and of its options."""
    command = [argument for argument in arguments if not argument.startswith("-")][:2]
    options = (_OPTION.match(argument) for argument in arguments)
    return [*command, *(option[0] for option in options if option), REMOVED]


def _without_messages(formatted: str) -> str:
    """A traceback without the messages of its errors, also of those that it has of another process."""
    kept: list[str] = []
    for line in formatted.splitlines():
        is_code = bool(kept) and kept[-1].startswith("  File ") and line.startswith("    ")
        if is_code or line.startswith("  File ") or line in _BETWEEN_ERRORS:
            kept.append(line)
        elif match := _ERROR.match(line):
            kept.append(match[0])
    return "\n".join(kept)


_OPTION = re.compile(r"--?[a-z][a-z-]*")
_ERROR = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Invalid)(?=:|$)")
_BETWEEN_ERRORS = (
    "Traceback (most recent call last):",
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)


def _write_report(error: BaseException) -> Path:
    """Everything that is needed to understand the failure, in a file of its own."""
    from aifx.core.files import make_private
    from aifx.core.project import cache_path

    def write(folder: str | Path) -> Path:
        handle, path = tempfile.mkstemp(".txt", f"aifx-report-{time.strftime('%Y%m%d-%H%M%S')}-", folder)  # 0600
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_report_text(error))
        return Path(path)

    try:
        folder = cache_path("reports")
        make_private(folder)
        return write(folder)
    except (AifxError, OSError, RuntimeError):  # a read-only home, none, or one of others
        return write(tempfile.gettempdir())


def _report_text(error: BaseException) -> str:
    import importlib.metadata
    import platform
    import shlex

    versions = [f"aifx {__version__}"]
    for package in ("jax", "jaxlib", "optax", "orbax-checkpoint", "grain", "numpy", "pydantic", "typer"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    trace, arguments = "".join(traceback.format_exception(error)), redact_arguments(sys.argv)
    if _handles_rows():
        trace, arguments = _without_messages(trace), ["aifx", *_without_values(arguments[1:])]
    lines = [
        "aifx failed in a way that nobody foresaw. Read this before you send it: it holds your command line and paths.",
        f"time      {time.strftime('%Y-%m-%dT%H:%M:%S%z')}",
        f"command   {shlex.join(arguments)}",
        f"python    {platform.python_implementation()} {platform.python_version()}, {platform.platform()}",
        f"packages  {', '.join(versions)}",
        "",
        redact(trace),
    ]
    return "\n".join(lines)
