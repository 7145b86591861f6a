"""`aifx` in a process of its own, forked from one that has imported what training imports: a second less for each.

Forked before any program was compiled, so that no thread is lost with it. Tests of signals, terminals and kills start
Python itself, as users do.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

TESTS = str(Path(__file__).parent)
IMPORTS = [
    "jax",
    "optax",
    "orbax.checkpoint",
    "grain",
    "tokenizers",
    "aifx.train.run",
    "aifx.evaluate",
    "aifx.generate",
]
READ_AT_IMPORT = ("JAX_", "PYTHON")
COMPILED = "JAX_COMPILATION_CACHE_DIR"

server = multiprocessing.get_context("forkserver")


def run(
    args: Sequence[str], cwd: Path, environ: Mapping[str, str], *, stdin: str = "", timeout_s: float = 180
) -> subprocess.CompletedProcess[str]:
    """`aifx args`. `environ` may differ from this process's in all but what JAX and Python read when they start."""
    for name in environ:
        same = not name.startswith(READ_AT_IMPORT) or name == COMPILED or environ[name] == os.environ.get(name)
        assert same, f"{name} would be set too late"
    server.set_forkserver_preload(IMPORTS)
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        for path, text in zip(streams, (stdin, "", ""), strict=True):
            path.write_text(text, encoding="utf-8", newline="")
        process = server.Process(target=_work, args=(list(args), str(cwd), dict(environ), list(map(str, streams))))
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["aifx", *args], timeout_s)
        out, err = (path.read_text(encoding="utf-8") for path in streams[1:])
        assert process.exitcode is not None
        return subprocess.CompletedProcess(["aifx", *args], process.exitcode, out, err)


def _work(args: list[str], cwd: str, environ: dict[str, str], streams: list[str]) -> None:
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.argv = ["aifx", *args]
    sys.path[:] = ["", *(path for path in sys.path if path and not path.startswith(TESTS))]
    import jax

    from aifx.commands.main import run

    jax.config.update(
        "jax_compilation_cache_dir", environ.get(COMPILED)
    )  # read from the server's environment at import
    sys.exit(run(args))
