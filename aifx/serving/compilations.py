"""How often the engine's thread had to compile: after the start, never."""

from __future__ import annotations

import threading
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Counts compilations of the thread that called `start`."""

    def __init__(self) -> None:
        self.count = 0
        self._thread: int | None = None
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def start(self) -> None:
        self._thread = threading.get_ident()

    def _heard(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED and threading.get_ident() == self._thread:
            self.count += 1
