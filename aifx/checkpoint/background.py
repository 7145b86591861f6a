"""One job at a time in a thread of its own. The next call raises what a job raised."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs jobs one after the other beside the training. Not itself safe to use from several threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` once the one before is done. Raises what that one raised."""
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as e:
                self._failure = e

        # A daemon: a process that must end at once does not wait for it; what it leaves, the next start cleans.
        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the job is done, waiting up to `timeout_s` for it. Raises what it raised, once."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return True
