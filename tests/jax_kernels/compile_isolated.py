"""`compile_absent` in a process a program, with a time limit, forked from one that has imported jax and Pallas.

The importing would be a quarter of the time; nothing was compiled before the fork, so that no thread is lost with it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import tempfile
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["compile_absent"])


def compile_isolated(*arguments: Any, limit_s: float) -> dict[str, Any]:
    """Return what `compile_absent.compile_case` returns, and as `output` what the compiler wrote, such as the PTX of
    Mosaic GPU's kernels. Fails with the end of that output."""
    with tempfile.TemporaryFile() as words:
        receiver, sender = server.Pipe(duplex=False)
        # The file's name in this process: descriptors are not inherited through the server.
        process = server.Process(target=_work, args=(sender, f"/proc/{os.getpid()}/fd/{words.fileno()}", arguments))
        process.start()
        sender.close()
        told = None
        if receiver.poll(limit_s):
            with suppress(EOFError):  # it crashed
                told = receiver.recv()
        process.kill()
        process.join()
        words.seek(0)
        output = words.read().decode("utf-8", "replace")
        assert told is not None, (
            f"not compiled within {limit_s:g} s, or crashed (exit {process.exitcode}):\n{output[-3000:]}"
        )
        return {**told, "output": output}


def _work(sender: Connection, words: str, arguments: tuple[Any, ...]) -> None:
    descriptor = os.open(words, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= {"MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_DUMP_HOST_LLVM": "1"}
    try:
        import compile_absent

        told = compile_absent.compile_case(*arguments)
        ctypes.CDLL(None).fflush(None)  # the compiler writes by C's printf
        sender.send(told)
    except BaseException:
        traceback.print_exc()
