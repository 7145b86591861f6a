"""`aifx` for programs that start it as a process: a small process that lets a server fork a warm one, and waits.

    with warm_aifx.serving(folder) as words:    # the argv of `aifx`

The fork does not end with the small process, which is killed if the fork was. Kill whole commands with real ones.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KILLED_AT = "KILLED_AT"
"""A variable of the environment with the number of the change below the working directory before which it is killed."""


@contextmanager
def serving(folder: Path) -> Iterator[list[str]]:
    path = str(folder / "warm")
    with subprocess.Popen([sys.executable, __file__, "serve", path], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            yield [sys.executable, "-I", "-S", __file__, path]
        finally:
            server.terminate()


def serve(path: str) -> None:
    import warm

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            args, cwd, environ = json.loads(self.rfile.readline())
            kept = {k: v for k, v in environ.items() if k == warm.COMPILED or not k.startswith(warm.READ_AT_IMPORT)}
            at = kept.pop(KILLED_AT, None)
            done = warm.run(args, Path(cwd), kept, killed_at=None if at is None else int(at))
            with suppress(BrokenPipeError):  # the small process was killed
                self.wfile.write(json.dumps([done.returncode, done.stdout, done.stderr]).encode())

    with socketserver.ThreadingUnixStreamServer(path, Handler) as server:
        print(flush=True)  # noqa: T201
        server.serve_forever()


def ask(path: str, args: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(json.dumps([args, os.getcwd(), dict(os.environ)]).encode() + b"\n")
        with connection.makefile("rb") as answer:
            code, out, err = json.load(answer)
    sys.stdout.write(out)
    sys.stderr.write(err)
    return int(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        code = ask(sys.argv[1], sys.argv[2:])
        if code == -signal.SIGKILL:
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(code)
