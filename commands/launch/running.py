"""What the commands below `aifx launch` share: which commands they start, and how they report their end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.output import Output
from aifx.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from aifx.cluster.local import Attempt, Process

COMMANDS = ("train", "eval")
ALONE = ("predict", "generate")

OPTIONS_FIRST = {"allow_interspersed_args": False}
"""Settings of a command that takes another one: everything after its name belongs to that one."""

CommandArgument = Annotated[
    list[str],
    typer.Argument(metavar="COMMAND", help="Command of aifx with its options, such as train --run NAME."),
]


def command_to_start(command: Sequence[str], example: str) -> list[str]:
    """The arguments of aifx. Raises UsageError for a command that does not run as several processes."""
    arguments = list(command[1:] if command[0] == "--" else command)
    if not arguments or arguments[0] not in COMMANDS:
        why = f"{' and '.join(COMMANDS)} run as several processes; other commands run as one, on all devices"
        alone = shlex.join(["aifx", *arguments]) if arguments and arguments[0] in ALONE else ""
        raise UsageError(f"{shlex.join(arguments[:1])!r} cannot be launched", why, alone or example)
    return arguments


def run_attempt(
    out: Output, started: Sequence[Process], came: Sequence[int], first: int = 0, *, has_others: bool = False
) -> Attempt:
    """Run processes until all have ended, and name the one that failed first.

    Args:
        first: the number of the first of them within the job.
        has_others: other machines have processes too. If those of this one end with 75, the fault is elsewhere.
    """
    from aifx.cluster.local import last_lines, run_once

    def write(index: int, line: bytes) -> None:
        out.log(f"[{first + index}] {line.decode('utf-8', 'replace').rstrip()}")

    attempt = run_once(started, came, write)
    if attempt.first is not None and attempt.code != ExitCode.VERDICT and not came:
        ended = attempt.ended[attempt.first]
        if has_others and ended.code == ExitCode.PREEMPTED:
            return attempt
        lines, how = last_lines(ended), "it did not end with the others" if ended.cut else ended.how
        out.log(f"process {first + attempt.first} failed first: {how}{'; its last lines:' if lines else ''}")
        for line in lines:
            out.log(f"    {line}")
    return attempt


def write_answer(out: Output, attempt: Attempt) -> None:
    """Write the answer of the first process to stdout, after what was logged."""
    sys.stdout.flush()
    out.write(attempt.answer.decode("utf-8", "replace"), exact=True)
