"""Files that a run needs before its next checkpoint counts, on a disk that may refuse them for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable

from aifx.core.os_errors import PASSING, in_brief, refusal_in

Write = Callable[[], None]


class DeferredWrites:
    """Writes files at once, or before the next checkpoint counts if the disk refuses them now.

    Args:
        warn: called with a line for people if files wait.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._writes: tuple[Write, ...] = ()
        self._lock = threading.Lock()  # a thread saves while another one traces a program

    def __call__(self, *writes: Write) -> None:
        """Call `writes` in order, in place of those that still wait. Raises errors that do not pass by themselves."""
        with self._lock:
            self._writes = writes
        try:
            self.finish()
        except Exception as error:
            if refusal_in(error) not in PASSING:
                raise
            reason = in_brief(error)
            self._warn(f"{reason}; training goes on, and aifx writes it before the next checkpoint")

    def finish(self) -> None:
        """Call the writes that wait. Raises what they raise; then all of them wait on."""
        with self._lock:
            for write in self._writes:
                write()
            self._writes = ()
