"""The commands that a hint names, and whether the real command line takes them."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from aifx.commands.app import run


def commands_in(hint: str) -> list[list[str]]:
    """The words of each `aifx ...` of a hint: up to a comma, a pipe or a redirection."""
    found = []
    for start in re.finditer(r"(?<![\w/.-])aifx (?=\w|--)", hint):
        words = []
        for word in shlex.split(hint[start.end() :]):
            if word in (">", "|"):
                break
            words.append(word.rstrip(",;"))
            if word != words[-1]:
                break
        found.append(words)
    return found


def check_hint(hint: str) -> int:
    """Parse each command of a hint as `aifx` does, and run none. Returns their number. Raises UsageError."""
    commands = commands_in(hint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.core.TyperCommand, "invoke", lambda command, context: None)
        for words in commands:
            run(words)
    return len(commands)
