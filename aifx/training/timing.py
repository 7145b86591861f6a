"""Times of a training that only JAX knows: when the device is done, and what compiles."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax

from aifx.runs.time_account import Span, TimeAccount

_COMPILED = "/jax/core/compile/backend_compile_duration"


class DataWait:
    """The waits for batches. While the device still computes, a wait costs nothing and counts as the step's time."""

    def __init__(self, account: TimeAccount) -> None:
        self._account = account
        self._watched: queue.SimpleQueue[tuple[jax.Array, Span] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @contextmanager
    def __call__(self, computing: jax.Array | None) -> Iterator[None]:
        """The block waits for a batch; `computing` is a number that the device is about to know, if there is one."""
        if computing is None or computing.is_ready():  # type: ignore[attr-defined]
            with self._account.spending("data_wait"):
                yield
            return
        with self._account.spending("step") as span:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="aifx-data-wait", daemon=True)
                self._thread.start()
            self._watched.put((computing, span))
            yield

    def __enter__(self) -> DataWait:
        return self

    def __exit__(self, *_: object) -> None:
        self._watched.put(None)

    def _watch(self) -> None:
        while (watched := self._watched.get()) is not None:
            computing, span = watched
            with suppress(Exception):  # the loop meets it as well, and reports it
                jax.block_until_ready(computing)
            self._account.change(span, "data_wait")


@contextmanager
def compilations_counted(account: TimeAccount) -> Iterator[None]:
    """Count what this thread compiles in the block as "compilation", also amid an evaluation."""
    thread = threading.get_ident()

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED and threading.get_ident() == thread:
            account.shift("compilation", duration_secs)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
