"""`aifx` in a process of its own, forked from one that has imported what training imports: two seconds less for each.

Forked before any program was compiled, so that no thread is lost with it. A forked process hears signals, reads and
writes a terminal, and dies as one does that started Python itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from faulty_files import killed

TESTS = str(Path(__file__).parent)
IMPORTS = [
    "jax",
    "optax",
    "tensorstore",
    "grain",
    "tokenizers",
    "aifx.commands.app",
    "aifx.commands.train.panel",
    "aifx.commands.train.command",
    "aifx.checkpoint.checkpoints",
    "aifx.training.hooks.guard",
    "aifx.training.loop",
    "aifx.training.run",
    "aifx.evaluation.held_out",
    "aifx.serving.generate",
]
READ_AT_IMPORT = ("JAX_", "PYTHON")
COMPILED = "JAX_COMPILATION_CACHE_DIR"

server = multiprocessing.get_context("forkserver")


class Process:
    """A forked `aifx`, with those methods of `subprocess.Popen` that tests need."""

    def __init__(
        self,
        args: Sequence[str],
        cwd: Path,
        environ: Mapping[str, str],
        *,
        stdin: str = "",
        terminal: str = "",
        ignored: int = 0,
        killed_at: int | None = None,
    ) -> None:
        """Start `aifx args`.

        Args:
            environ: may differ from this process's in all but what JAX and Python read at import.
            terminal: path of a terminal that is stdin, stdout and stderr.
            ignored: signal that the process ignores from its start, as if a shell had set that.
            killed_at: number of the change below `cwd` before which the process is killed.
        """
        for name in environ:
            same = not name.startswith(READ_AT_IMPORT) or name == COMPILED or environ[name] == os.environ.get(name)
            assert same, f"{name} would be set too late"
        self.args = ["aifx", *args]
        self._folder = tempfile.TemporaryDirectory()
        streams = [Path(self._folder.name, name) for name in ("stdin", "stdout", "stderr")]
        for path, text in zip(streams, (stdin, "", ""), strict=True):
            path.write_text(text, encoding="utf-8", newline="")
        self._output = streams[1:]
        paths = [terminal] * 3 if terminal else [str(path) for path in streams]
        server.set_forkserver_preload(IMPORTS)
        self._process = server.Process(
            target=_work, args=(list(args), str(cwd), dict(environ), paths, ignored, killed_at), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises TimeoutExpired."""
        self._process.join(timeout)
        if (code := self.returncode) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return what was written to stdout and stderr. Raises TimeoutExpired."""
        self.wait(timeout)
        out, err = (path.read_text(encoding="utf-8") for path in self._output)
        return out, err


def run(
    args: Sequence[str],
    cwd: Path,
    environ: Mapping[str, str],
    *,
    stdin: str = "",
    timeout_s: float = 500,
    killed_at: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `aifx args` in `cwd`; `environ` as for `Process`."""
    process = Process(args, cwd, environ, stdin=stdin, killed_at=killed_at)
    try:
        out, err = process.communicate(timeout_s)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def _work(
    args: list[str], cwd: str, environ: dict[str, str], streams: list[str], ignored: int, killed_at: int | None
) -> None:
    os.setsid()
    if ignored:
        signal.signal(ignored, signal.SIG_IGN)
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.argv = ["aifx", *args]
    watched = contextlib.nullcontext() if killed_at is None else killed(Path(cwd), killed_at)
    sys.path[:] = ["", *(path for path in sys.path if path and not path.startswith(TESTS))]
    import jax

    from aifx.commands.main import answer_of_signals, run
    from aifx.core import lifecycle

    lifecycle.enter(lambda: answer_of_signals(args))
    jax.config.update(
        "jax_compilation_cache_dir", environ.get(COMPILED)
    )  # read from the server's environment at import
    with watched:
        code = run(args)
    sys.exit(code)
