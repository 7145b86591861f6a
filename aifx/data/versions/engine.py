"""DuckDB within limits: nothing is fetched, and what exceeds the memory goes to a folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aifx.core.lifecycle import hear_signals, interrupt_of

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
    """Let Ctrl-C and SIGTERM stop a query: Python handles signals between its own instructions, and a query is one of
    them, however long it takes."""
    received: list[int] = []
    is_over = threading.Event()

    def stop(number: int) -> None:
        received.append(number)
        connection.interrupt()
        while not is_over.wait(INTERRUPT_EVERY_S):  # DuckDB forgets an interrupt when a query starts
            connection.interrupt()

    with hear_signals(stop):
        try:
            yield
        except Exception:  # DuckDB raises more than one type for a query that is interrupted
            if received:
                raise interrupt_of(received[0]) from None
            raise
        finally:
            is_over.set()
