"""Asking before something is deleted."""

from __future__ import annotations

import sys

import typer

from aifx.commands.console.output import Output
from aifx.core.errors import ExitCode, UsageError


def confirm_deletion(out: Output, what: str, size: str, hint: str) -> None:
    """Ask whether to delete. Raises UsageError without a terminal, SystemExit if the answer is no.

    Args:
        what: "run main", as it follows the word "delete".
        hint: the command that deletes without asking.
    """
    if out.json or not sys.stdin.isatty() or not out.err.is_terminal:
        raise UsageError(f"deleting {what} requires --yes", "there is no terminal to ask on", hint)
    if not typer.confirm(f"Delete {what} ({size})?", err=True):
        out.log("nothing was deleted")
        raise SystemExit(ExitCode.OK)
