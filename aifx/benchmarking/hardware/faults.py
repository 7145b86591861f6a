"""What ends a measurement of the silicon."""

from __future__ import annotations

from aifx.core.errors import AifxError, ExitCode


class WrongResult(AifxError):
    """A device computed or moved something else than it was given: a rate of that is none."""

    exit_code = ExitCode.VERDICT

    def __init__(self, where: str, what: str) -> None:
        why = f"{what}: compared with their one right value"
        super().__init__(f"{where} gives wrong results", why, "aifx doctor --stress")
