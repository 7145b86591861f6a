"""The machine as probes see it: files, commands and Python libraries, each within a time limit.

`Host()` is this machine. `Host(Path("tree"))` is one whose files were copied to a folder: then aifx runs no command,
and reads the output of commands and libraries from `aifx-captured/` in that folder, if it exists.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from aifx.core.environment import find_program
from aifx.core.errors import UsageError
from aifx.core.facts import Absent, Unknown
from aifx.core.parsing import parse_json
from aifx.core.processes import Child, Ended, run
from aifx.core.redaction import is_secret_variable, redact

CAPTURED = "aifx-captured"
READ_LIMIT_S = 2.0

OF_A_MACHINE = ("proc", "sys", "etc", "var", "dev", CAPTURED)
"""The folders that probes read."""

T = TypeVar("T")


class Host:
    """Args:
    root: the root of its files.
    imports_project: whether the probes may import the code of the project around the working directory.
    """

    def __init__(self, root: Path = Path("/"), *, imports_project: bool = False) -> None:
        self.imports_project = imports_project
        self.root = root
        self._real_root = os.path.realpath(root)
        self._real_folders: dict[str, str] = {}
        self.is_live = self._real_root == "/"

    def path(self, path: str) -> Path:
        """Return where an absolute path of the machine is."""
        return self.root / path.lstrip("/")

    def read(self, path: str, max_bytes: int = 1 << 20) -> str | Absent | Unknown:
        """Return a file's text without the last line end and without secrets.

        In a copied tree, an empty file is one that could not be read when it was copied.
        """

        def read() -> str:
            with self.path(path).open("rb") as file:
                return file.read(max_bytes).decode("utf-8", "replace").rstrip("\n")

        text = self._of_disk(path, read)
        if text == "" and not self.is_live:
            return Absent(f"{path} is empty in this copy")
        return redact(text) if isinstance(text, str) else text

    def tail(self, path: str, max_bytes: int) -> tuple[str, int] | Absent | Unknown:
        """Return the text at a file's end, and the number of bytes before it.

        This does not remove secrets: searching a long log for them takes seconds.
        """

        def read() -> tuple[str, int]:
            with self.path(path).open("rb") as file:
                skipped = max(file.seek(0, os.SEEK_END) - max_bytes, 0)
                file.seek(skipped)
                return file.read(max_bytes).decode("utf-8", "replace"), skipped

        return self._of_disk(path, read)

    def modified(self, path: str) -> float | Absent | Unknown:
        """Return when a file was written, Unix time."""
        return self._of_disk(path, lambda: self.path(path).stat().st_mtime)

    def number(self, path: str) -> int | float | Absent | Unknown:
        """Return the number in a file."""
        text = self.read(path)
        if not isinstance(text, str):
            return text
        if not text or text.startswith("N/A"):  # "N/A (no PMA)" of an InfiniBand port that counts nothing
            return Absent(f"{path} is not a number")
        with suppress(ValueError):
            return int(text, 0)
        with suppress(ValueError):
            return float(text)
        return Unknown(f"{path} is not a number: {text[:40]!r}")

    def names(self, path: str) -> list[str] | Absent | Unknown:
        """Return the names in a folder, in order."""
        return self._of_disk(path, lambda: sorted(os.listdir(self.path(path))))

    def link(self, path: str) -> str | Absent | Unknown:
        """Return the target of a symbolic link."""
        return self._of_disk(path, lambda: os.readlink(self.path(path)), followed=os.path.dirname(path))

    def exists(self, path: str) -> bool:
        return self.path(path).exists() and not self._leads_out(path)

    def _leads_out(self, path: str) -> bool:
        """Return whether absolute links in a copy lead to files of this machine."""
        if self.is_live:
            return False
        real = self._real_path(str(self.path(path)))
        return os.path.commonpath([real, self._real_root]) != self._real_root

    def _real_path(self, path: str) -> str:
        """Return the path without links. Follows those of a folder once, since probes read many files of one."""
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):
            return os.path.realpath(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return os.path.join(self._real_folders[folder], name)

    def run(self, *command: str, limit_s: float = 5.0) -> str | Absent | Unknown:
        """Return a command's stdout; `Absent` if it is not installed, `Unknown` if it fails or hangs."""
        name = "_".join(re.sub(r"[^\w.-]", "", word) for word in command).strip("_")
        if not self.is_live:
            return self._captured(f"{name}.txt", " ".join(command))
        program = find_program(command[0], ("/usr/sbin", "/sbin"))
        if program is None:
            return Absent(f"{command[0]} is not installed")
        words = " ".join([program, *command[1:3]])
        try:
            ended = run([program, *command[1:]], env=os.environ | {"LC_ALL": "C"}, limit_s=limit_s)
        except OSError as error:
            return Unknown(f"{words} could not be started: {error.strerror}")
        return redact(ended.output.decode("utf-8", "replace")) if ended.succeeded else _failed(ended, words, limit_s)

    def ask(self, module: str, *arguments: str, name: str, limit_s: float) -> Any:
        """Return the JSON that a module of aifx prints in its own process, so that a library that hangs or crashes
        affects nothing else. Captured as `<name>.json`."""
        if not self.is_live:
            return self._captured_json(name)
        with Child.of_module(module, *arguments, limit_s=limit_s) as child:
            documents = list(child.events())
        ended = child.wait()
        # A thread that hangs in a driver may keep it from ending, but it has answered.
        return documents[-1] if documents and (ended.succeeded or ended.cut) else _failed(ended, name, limit_s)

    def measure(self, name: str, function: Callable[[], T]) -> T | Any:
        """Return the result of a function on the live machine; captured as `<name>.json`."""
        if not self.is_live:
            return self._captured_json(name)
        try:
            return function()
        except PermissionError as error:
            return Unknown(f"{name}: {error}", "run aifx doctor as root")
        except OSError as error:
            return Unknown(f"{name}: {error}")

    def environ(self) -> Mapping[str, str]:
        """Return the environment without possible secrets."""
        found = dict(os.environ) if self.is_live else self._captured_json("environ")
        if not isinstance(found, dict):
            return {}
        return {k: redact(str(v)) for k, v in found.items() if not is_secret_variable(k)}

    def _captured(self, file: str, what: str) -> str | Absent | Unknown:
        text = self.read(f"{CAPTURED}/{file}", max_bytes=1 << 24)
        return Absent(f"{what}: not captured in {self.root}") if isinstance(text, Absent) else text

    def _captured_json(self, name: str) -> Any:
        text = self._captured(f"{name}.json", name)
        try:
            return parse_json(text) if isinstance(text, str) else text
        except ValueError as error:
            return Unknown(f"{name} is not JSON: {error}")

    def _of_disk(self, path: str, read: Callable[[], T], followed: str | None = None) -> T | Absent | Unknown:
        """Return the result of `read` for a path.

        Args:
            followed: the part of the path whose links are followed; None for all of it.
        """
        if not self.is_live and self._leads_out(path if followed is None else followed):
            return Absent(f"{path} is a link out of this copy")
        try:
            # A thread per file would take most of the time of a copy, and the probe's limit covers a disk that hangs.
            return within(READ_LIMIT_S, read, f"reading {path}") if self.is_live else read()
        except (FileNotFoundError, NotADirectoryError):
            return Absent(f"{path} does not exist")
        except PermissionError:
            return Unknown(f"{path} is not readable", "run aifx doctor as root")
        except TimeoutError as error:
            return Unknown(str(error), "a file system or driver hangs: look for processes in state D")
        except OSError as error:
            # The error of sysfs for an attribute that this device lacks.
            if error.errno in (errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP):
                return Absent(f"{path}: {error.strerror}")
            return Unknown(f"{path}: {error}")


def within(limit_s: float, function: Callable[[], T], what: str) -> T:
    """Return the function's result. Raises TimeoutError if it takes longer; a hanging thread is left behind."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name=what).start()
    try:
        return future.result(limit_s)
    except TimeoutError:
        if future.done():  # the function's own
            raise
        raise TimeoutError(f"{what} took more than {limit_s:g} s") from None


def _failed(ended: Ended, words: str, limit_s: float) -> Unknown:
    if ended.cut:
        return Unknown(f"{words} did not answer within {limit_s:g} s", "look for processes in state D")
    lines = ended.output.decode("utf-8", "replace").strip().splitlines()
    why = ended.last_line or redact(lines[-1] if lines else "it printed nothing")
    return Unknown(f"{words} failed ({ended.how}): {why[:200]}")


def open_copy(root: Path) -> Host:
    """Return the machine whose files were copied to a folder. Raises UsageError for a folder without any."""
    hint = "aifx doctor --root DIR, with DIR/proc and DIR/sys in it"
    if not root.is_dir():
        raise UsageError(f"--root {root} is not a folder", "", hint)
    if not any(files for name in OF_A_MACHINE for _, _, files in os.walk(root / name)):
        why = f"it has no file in {', '.join(f'{name}/' for name in OF_A_MACHINE)}"
        raise UsageError(f"--root {root} holds no files of a machine", why, hint)
    return Host(root)
