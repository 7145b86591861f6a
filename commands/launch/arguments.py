"""The command that is launched, read as aifx reads it, before a queue or several processes wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aifx.core.errors import UsageError
from aifx.core.project import Project, check_run_name


def run_of(arguments: Sequence[str]) -> str:
    """The name of the run that a command trains or measures; "" for the one written last.

    Raises UsageError for options that the command does not have.
    """
    options = _options(arguments)
    return str(options.get("fork") or options.get("run") or "")


def check_command(arguments: Sequence[str], project: Project) -> str:
    """Check the options and settings of a command as far as they are known now. Returns the name of its run.

    Raises UsageError, ConfigError.
    """
    from aifx.kinds import load_config

    options = _options(arguments)
    if options.get("json"):
        raise UsageError("--json cannot be launched", "the answer goes to the job's log", "leave --json out")
    if arguments[0] == "train":
        file = options.get("config")
        load_config(project, options.get("overrides") or [], file=None if file is None else Path(file))
    else:
        project.existing_run(options.get("run"))
    run = str(options.get("fork") or options.get("run") or "")
    if run:
        check_run_name(run)
    return run


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """The `--set` options of a command. Raises UsageError for options that it does not have."""
    return list(_options(arguments).get("overrides") or _options(arguments).get("set_") or [])


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    from aifx.commands.app import app
    from aifx.commands.console.typer_internals import parse

    if "--help" in arguments or "-h" in arguments:
        raise UsageError("a page of help cannot be launched", "", f"aifx {arguments[0]} --help")
    return parse(app, arguments)
