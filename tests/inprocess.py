"""Run `aifx` inside the test process: no interpreter start, no imports, no fork.

Use this unless signals, terminals, kills or the exit of a process are the point of a test. Tests that need another
number of devices, or whose working directory or environment must not be shared, use `warm.run`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
from published_schemas import check_answer

REPOSITORY = Path(__file__).parents[1]
INSTALLED = tuple({str(REPOSITORY), *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib"))})
READ_AT_IMPORT = ("JAX_", "PYTHON", "XLA_")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def run(
    args: Sequence[str], cwd: Path, environ: Mapping[str, str], *, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `aifx args` in `cwd` with exactly `environ` and return its exit code and output.

    `environ` may differ from this process's environment except in variables that JAX and Python read at import. Of
    these, PYTHONPATH may differ as well: processes that the command starts read it.
    """
    from aifx.commands.main import run as run_command

    for name in environ:
        same = not name.startswith(READ_AT_IMPORT) or name == "PYTHONPATH" or environ[name] == os.environ.get(name)
        assert same, f"{name} would be set too late"
    kept = {k: v for k, v in os.environ.items() if k.startswith(READ_AT_IMPORT) and k not in environ}
    with tempfile.TemporaryDirectory() as folder, _own_process_state(cwd, {**environ, **kept}):
        streams = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        for path, text in zip(streams, (stdin, "", ""), strict=True):
            path.write_text(text, encoding="utf-8", newline="")
        sys.argv = ["aifx", *args]
        with ExitStack() as opened:
            sys.stdin = opened.enter_context(open(streams[0], encoding="utf-8"))
            sys.stdout = opened.enter_context(open(streams[1], "a", encoding="utf-8"))
            sys.stderr = opened.enter_context(open(streams[2], "a", encoding="utf-8", buffering=1))
            code = run_command(list(args))
        out, err = (path.read_text(encoding="utf-8") for path in streams[1:])
    check_answer(args, out)
    return subprocess.CompletedProcess(["aifx", *args], int(code), out, err)


@contextmanager
def _own_process_state(cwd: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """Set the working directory and environment, and restore all process state that a command may change."""
    streams, argv, path, modules = (sys.stdin, sys.stdout, sys.stderr), sys.argv, list(sys.path), set(sys.modules)
    before_cwd, before_environ = os.getcwd(), dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        os.chdir(cwd)
        _replace_environ(environ)
        sys.path[:] = ["", *(p for p in path if p and not p.startswith(str(REPOSITORY / "tests")))]
        with warnings.catch_warnings():
            yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.argv, sys.path[:] = argv, path
        os.chdir(before_cwd)
        _replace_environ(before_environ)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
        _forget_project_modules(modules)


def _replace_environ(environ: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)


def _forget_project_modules(before: set[str]) -> None:
    """Remove the modules of a project, so that another project's modules of the same name can be imported."""
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and not file.startswith(INSTALLED):
            del sys.modules[name]
