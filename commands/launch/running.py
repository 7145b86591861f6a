"""Parts that commands of `aifx launch` share: the command that they start, and reports of its processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.output import Output

if TYPE_CHECKING:
    from aifx.verbs.launching import Ended

OPTIONS_FIRST = {"allow_interspersed_args": False}
"""Settings of a command that takes another one: everything after its name belongs to that one."""

CommandArgument = Annotated[
    list[str],
    typer.Argument(metavar="COMMAND", help="Command of aifx with its options, such as train --run NAME."),
]


def check_options(command: Sequence[str]) -> None:
    """Raise UsageError for options that a command does not have, before a queue waits for it."""
    from aifx.commands.app import app
    from aifx.commands.console.typer_internals import parse

    arguments = command[1:] if command[0] == "--" else command
    if arguments and arguments[0] in ("train", "eval") and "--help" not in arguments and "-h" not in arguments:
        parse(app, arguments)


def given_settings(section_keys: dict[str, tuple[str, ...]], given: object) -> dict[str, Any]:
    """The options that are given, as settings of these sections: `{"launch.nodes": 2}`."""
    return {
        f"{section}.{key}": value
        for section, keys in section_keys.items()
        for key in keys
        if (value := getattr(given, key)) is not None
    }


def line_writer(out: Output) -> Callable[[int, bytes], None]:
    """The function that shows a line of a process, with its number."""
    return lambda number, line: out.log(f"[{number}] {line.decode('utf-8', 'replace').rstrip()}")


def write_answer(out: Output, ended: Ended) -> None:
    """Write the answer of the first process to stdout, after what was logged, and end as the processes did."""
    sys.stdout.flush()
    out.write(ended.answer, exact=True)
    out.result(ended)
