"""Retries of a checkpoint that the disk refuses: it is written again, given up for a newer one, or an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from aifx.core.os_errors import FULL, in_brief, refusal_in

RETRY_S = 1.0
"""The first pause; each one is twice as long as the one before."""

LONGEST_PAUSE_S = 60.0


class Patience:
    """Decides in process 0 what becomes of a checkpoint that could not be written.

    A training goes on without it: the run loses nothing that it has. So nothing is given up while there are steps to
    do. Once the training waits, the disk has `timeout_s` to recover.

    Args:
        warn: called with a line for people; of a failure that lasts, once for each reason.
        on_refusal: called with the step and the error, once for each reason.
    """

    def __init__(
        self, timeout_s: float, warn: Callable[[str], None], on_refusal: Callable[[int, BaseException], None]
    ) -> None:
        self._timeout_s, self._warn, self._on_refusal = timeout_s, warn, on_refusal
        self._wake = threading.Event()
        self._is_superseded = False
        self._deadline: float | None = None
        self._reason: object = None  # of the failure that lasts

    def begin(self) -> None:
        """A checkpoint is about to be written."""
        self._is_superseded, self._deadline = False, None
        self._wake.clear()

    def supersede(self) -> None:
        """There is a newer state: a checkpoint that the disk refuses now is not written again."""
        self._is_superseded = True
        self._wake.set()

    def limit(self) -> None:
        """The training waits."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._timeout_s
        self._wake.set()

    def written(self, step: int) -> None:
        """The disk took the checkpoint of `step`."""
        if self._reason is not None:
            self._warn(f"the disk takes checkpoints again: that of step {step} is saved")
        self._reason = None

    def decide(self, step: int, fault: BaseException, attempt: int) -> Literal["again", "drop", "fail"]:
        """The decision after `fault`; waits before another attempt."""
        number = refusal_in(fault)
        if attempt == 0:
            if self._reason is None and number not in FULL:
                self._warn(f"{in_brief(fault)}; writing it again")
            return "again"
        if self._is_expired():
            return "fail"
        reason = number or str(fault)
        if reason != self._reason:
            self._reason = reason
            self._warn(f"{in_brief(fault)}; training goes on, and aifx tries again until the disk takes a checkpoint")
            self._on_refusal(step, fault)
        if not self._is_superseded:
            self._wake.wait(min(RETRY_S * 2 ** (attempt - 1), LONGEST_PAUSE_S))
            self._wake.clear()
        return "drop" if self._is_superseded else "again"

    def _is_expired(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline
