"""Forks `aifx` processes whose calls of the operating system fail; started with failing_calls.so as LD_PRELOAD.

Reads a JSON line for each process: args, cwd, environ, the paths of its stdin, stdout and stderr, and what fails.
Answers with a line: the exit code, negative for a signal.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import warm


def work(asked: dict) -> None:
    calls = ctypes.CDLL(None)
    folder, first, last, number, told = asked["fail"]
    calls.fail_arm(folder.encode(), ctypes.c_long(first), ctypes.c_long(last), number, told.encode())
    try:
        warm._work(asked["args"], asked["cwd"], asked["environ"], asked["streams"], 0, None)
    finally:
        calls.fail_count.restype = ctypes.c_long
        made = calls.fail_count()
        calls.fail_arm(b"", ctypes.c_long(-1), ctypes.c_long(-1), 0, b"")
        Path(asked["count"]).write_text(str(made))


def main() -> None:
    for module in warm.IMPORTS:
        importlib.import_module(module)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            work(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
