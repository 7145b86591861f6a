"""DuckDB within limits: nothing is fetched, and what exceeds the memory goes to a folder."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aifx.core.errors import Terminated

INTERRUPT_EVERY_S = 0.1


def duckdb_config(memory_bytes: int, spill: Path, threads: int) -> dict[str, Any]:
    """The settings of every connection: limits, the folder for what exceeds the memory, and no extension fetched."""
    return {
        "memory_limit": f"{memory_bytes >> 20}MiB",
        "temp_directory": str(spill),
        "threads": threads,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }


@contextmanager
def stopped_by_signals(connection: Any) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop a query.

    Python handles signals between its own instructions, and a query is one of them, however long it takes. So a thread
    reads the signals from a pipe.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    received: list[int] = []
    is_over = threading.Event()

    def stop() -> None:
        while number := os.read(reader, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                received.append(number[0])
                connection.interrupt()
                while not is_over.wait(INTERRUPT_EVERY_S):  # DuckDB forgets an interrupt when a query starts
                    connection.interrupt()

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    except Exception:  # DuckDB raises more than one type for a query that is interrupted
        if received:
            raise (KeyboardInterrupt if received[0] == signal.SIGINT else Terminated) from None
        raise
    finally:
        signal.set_wakeup_fd(before)
        is_over.set()
        os.close(writer)
        thread.join()
        os.close(reader)
