"""Batches in order, read ahead as soon as the reader is there."""

from __future__ import annotations

import threading
from collections.abc import Generator

from aifx.data.base import Batch, BatchSource

DEPTH = 2
"""Batches read ahead: one that waits, one in the making."""


def feed(source: BatchSource, first: int, last: int, rows: slice) -> Generator[Batch, None, None]:
    """The batches of steps first, ..., last - 1.

    grain takes a second to import. That happens in a thread while the first steps run, which read their batches
    themselves: a batch is a function of its step, so that who reads it changes nothing.
    """
    ready = threading.Event()

    def load() -> None:
        import grain  # noqa: F401

        ready.set()

    threading.Thread(target=load, name="aifx-import-grain", daemon=True).start()
    for step in range(first, last):
        if ready.is_set():
            yield from _ahead(source, step, last, rows)
            return
        yield source.read(step, rows)


def _ahead(source: BatchSource, first: int, last: int, rows: slice) -> Generator[Batch, None, None]:
    from aifx.data.order import prefetch

    batches = prefetch(source, first, rows, DEPTH)
    try:
        for _ in range(first, last):
            yield next(batches)
    finally:
        batches.close()
