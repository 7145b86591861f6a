"""Attempts: processes that outlive the line that started them, and are found again by their folder.

    line/attempts/<attempt>/<try>/lock        locked by all processes of the try
                                  process     /proc/PID/stat of the first of them, when it began
                                  stdout-1    of the first command
                                  stderr-1
                                  error-1     the document of its failure, if aifx failed
                                  exit        "2 75": command 2 was the last one, and exited 75; "2 75 full" if the
                                              disk was full
                                  stopped     why the line ended it

The lock is taken before the process begins, and the process inherits it. So a killed line leaves one of three states:
the exit file is there and the try is over; the lock is held and the try goes on; neither, and the try never began or
was killed. Only the last one is started again, under the same id of the attempt.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aifx.core.errors import AifxError, ConfigError, DataError
from aifx.core.files import make_folders, open_file, read_end, read_file
from aifx.core.json_files import write_text
from aifx.core.processes import KILLED, Apart, aifx_command, end_group, start_apart
from aifx.core.redaction import is_secret_variable

AIFX = tuple(aifx_command())
GRACE_S = 30.0
"""Between SIGTERM and SIGKILL of a try that exceeds its time limit: a training saves what it has."""
RESERVED_BYTES = {".process": 1024, ".exit": 64}
"""Files that the shell fills and renames. Their room is taken before it begins, so that a full disk hides no end."""
ERROR_BYTES = 1 << 16
DOCUMENT_BYTES = 16 << 20

_NAMES = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "KUBECONFIG"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SLURM_CONF"}
    | {"https_proxy", "http_proxy", "no_proxy"}
)
_BEGINNINGS = ("LC_", "XDG_", "AIFX_", "CUDA_", "NVIDIA_", "XLA_", "JAX_", "NCCL_")

_ATTEMPT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_STEERING = re.compile(
    r"(CLOUDSDK_)?PYTHON.*|KUBECONFIG|ODBC(SYS)?INI|PGSYSCONFDIR|HOME|SHELL|ENV|IFS|PATH|TMPDIR|.*(?<!PRO)FILE"
    r"|.*_(PATH|DIR|HOME|CONFIG|FLAGS|OPTIONS|PROXY|ALLOW_EXECUTABLES)",
    re.IGNORECASE,
)
"""Variables by which programs find or load other code, as far as they are known."""
_STEERING_BEGINNING = re.compile(
    "(LD|DYLD|BASH|GIT|GCONV|GLIBC|MALLOC|OPENSSL|PJRT|TF|XLA|JAX|CUDA|NVIDIA|NCCL|SLURM|SBATCH|XDG)_", re.IGNORECASE
)
"""How others of them begin, and some secrets as well, such as SLURM_JWT."""

# A shell writes down its process and the exit code, because nobody may be there to wait for it. SIGTERM goes to the
# whole group: the shell ignores it by a trap, which the commands do not inherit, so that it sees how they end.
_BEGIN = """trap : TERM INT HUP
{ read -r stat </proc/$$/stat && echo "$stat" 1<>.process && mv .process process; } 2>/dev/null
end() {
  full=; [ "$2" = 0 ] || { echo room >.room && rm .room; } 2>/dev/null || full=full
  echo "$1 $2 $full" 1<>.exit && mv .exit exit
  exit "$2"
}
try=$PWD
"""


@dataclass(frozen=True)
class Exit:
    """The end of a try.

    Attributes:
        command: number of the last command that ran, from 1.
        code: its exit code; 128 and the number of the signal that ended it.
        stopped: why the line ended it, or empty.
        was_lost: the try was killed together with the shell that would have written its exit code.
        was_full: there was no room on the disk, so what the command wrote may be missing.
    """

    command: int
    code: int
    stopped: str = ""
    was_lost: bool = False
    was_full: bool = False


@dataclass(frozen=True)
class Try:
    """A try of an attempt: `number` counts from 1."""

    folder: Path
    attempt: str
    number: int

    def __post_init__(self) -> None:
        if not _ATTEMPT.fullmatch(self.attempt) or not isinstance(self.number, int):
            why = "no line gives such a name; the journal may come from somebody else"
            what = f"{self.attempt!r}, try {self.number!r}, is no attempt"
            raise DataError(what, why, f"move {self.folder.parent} away, and run the line again")

    @property
    def path(self) -> Path:
        return self.folder / self.attempt / str(self.number)

    def output(self, command: int) -> bytes:
        """What a command wrote to stdout, up to a limit; empty if there is nothing."""
        return _read_some(self.path / f"stdout-{command}", DOCUMENT_BYTES)

    def errors(self, command: int) -> bytes:
        return _read_some(self.path / f"stderr-{command}", ERROR_BYTES)

    def failure(self, command: int) -> bytes:
        """The document of a failure of aifx, also of a command that prints none; empty if there is none."""
        return _read_some(self.path / f"error-{command}", ERROR_BYTES)

    def start(self, commands: Sequence[Sequence[str]], environ: Mapping[str, str], cwd: Path) -> Apart | None:
        """Begin the commands, one after the other until one fails. None if the try runs already.

        Raises OSError if no process can be started.
        """
        make_folders(self.path, below=self.folder.parent)
        handle = open_file(self.path / "lock", os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            lines = [_BEGIN, f"cd {shlex.quote(str(cwd))} || exit 2\n"]
            for number, words in enumerate(commands, 1):
                failure = f'AIFX_ERROR_FILE="$try"/error-{number}'
                files = f'</dev/null >"$try"/stdout-{number} 2>"$try"/stderr-{number}'
                end = f'cd "$try"; end {number}'
                lines.append(f"{failure} {shlex.join(words)} {files} || {{ code=$?; {end} $code; }}\n")
            lines.append(f'cd "$try"; end {len(commands)} 0\n')
            for name, size in RESERVED_BYTES.items():
                _reserve(self.path / name, size)
            os.set_inheritable(handle, True)
            return start_apart(["/bin/sh", "-c", "".join(lines)], env=environ, cwd=self.path, holds=handle)
        finally:
            os.close(handle)

    def look(self) -> Exit | bool:
        """The end of the try; True while it runs; False if it never began."""
        # The lock first: a process that holds it may write its exit code and go between two looks.
        runs = self._is_locked()
        stopped = self.stopped()
        words = _read_some(self.path / "exit", 100).split()
        if len(words) >= 2 and words[0].isdigit() and words[1].isdigit():
            return Exit(int(words[0]), int(words[1]), stopped, was_full=words[2:] == [b"full"])
        if runs:
            return True
        if _read_some(self.path / "process", 4096):
            return Exit(1, KILLED, stopped, was_lost=True)
        return False

    def stopped(self) -> str:
        """Why the line ended the try; empty if it did not."""
        return _read_some(self.path / "stopped", 1000).decode(errors="replace").strip()

    def age_s(self) -> float | None:
        """Seconds since the try began, by a clock that nobody sets; None if that is not known."""
        began = self._began()
        if began is None:
            return None
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began[1] / os.sysconf("SC_CLK_TCK")

    def stop(self, why: str, *, at_once: bool = False) -> None:
        """End all processes of the try, if they are still those that it began. `look` then says why."""
        if not (self.path / "stopped").exists():
            write_text(self.path / "stopped", why + "\n")
        began = self._began()
        if began is not None:
            end_group(began[0], at_once=at_once)

    def _began(self) -> tuple[int, int] | None:
        """The process id of the shell and its start in clock ticks, if it still runs."""
        then = _stat(self.path / "process")
        return then if then is not None and _stat(Path("/proc", str(then[0]), "stat")) == then else None

    def _is_locked(self) -> bool:
        try:
            handle = open_file(self.path / "lock")
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False


def environment_of(
    names: Sequence[str], folder: Path, given: Mapping[str, str], *, is_program: bool = False, **added: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The environment of a station's commands, and the values in it that are secret.

    Args:
        names: variables that the station asks for, and "file:PATH" for a file of NAME=VALUE lines.
        folder: that paths are relative to.
        given: the environment of the line.
        is_program: of a station that may run any program. Otherwise a file can set no variable by which commands find
            or load other code: the file may come with the line, from strangers.

    Raises ConfigError naming a variable that is unset, or a file that cannot be read.
    """
    environ = {
        name: value
        for name, value in given.items()
        if name in _NAMES or (name.startswith(_BEGINNINGS) and not is_secret_variable(name))
    }
    asked = dict[str, str]()
    for name in names:
        if name.startswith("file:"):
            found = _read_variables(path := folder / name.removeprefix("file:"))
            if not is_program and (steering := next(filter(_is_steering, found), "")):
                why = "commands may load other code by it, and the file may come from whoever wrote the line"
                raise ConfigError(f"{path} sets {steering}", why, f"export {steering}=...  where the line runs")
            asked |= found
        elif name in given:
            asked[name] = given[name]
        else:
            hint = f"export {name}=...  where the line runs, or take it out of the station's environment"
            raise ConfigError(f"the environment variable {name} is not set", "the station asks for it", hint)
    return {**environ, **asked, **added}, tuple(value for value in asked.values() if len(value) >= 4)


def _is_steering(name: str) -> bool:
    begins = _STEERING_BEGINNING.match(name) is not None and not is_secret_variable(name)
    return begins or _STEERING.fullmatch(name) is not None


def _read_variables(path: Path) -> dict[str, str]:
    try:
        text = read_file(path, follow=True).decode()
    except (OSError, ValueError, AifxError) as e:
        raise ConfigError(f"could not read {path}", str(e).splitlines()[0], "the station's environment names it") from e
    found = dict[str, str]()
    for number, line in enumerate(text.splitlines(), 1):
        name, is_set, value = line.strip().removeprefix("export ").partition("=")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not is_set or not name.strip().isidentifier():
            raise ConfigError(f"{path}:{number} sets no variable", "a line is NAME=VALUE", "correct the line")
        found[name.strip()] = value.strip().strip("\"'")
    return found


def _reserve(path: Path, size: int) -> None:
    handle = open_file(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(handle, b" " * size)
    finally:
        os.close(handle)


def _stat(path: Path) -> tuple[int, int] | None:
    """Process id and start time in a file as /proc/PID/stat: field 22, from behind the name, which may hold spaces."""
    try:
        data = _read_some(path, 4096)
        return int(data.split(b" ", 1)[0]), int(data.rpartition(b") ")[2].split()[19])
    except (ProcessLookupError, ValueError, IndexError):
        return None


def _read_some(path: Path, limit: int) -> bytes:
    """The end of a file, up to a limit; empty if there is none.

    Raises UnsafeFile and OSError for another fault: a try that is there and cannot be read must not begin again.
    """
    try:
        return read_end(path, limit)
    except FileNotFoundError:
        return b""
