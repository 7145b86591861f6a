"""`aifx runs rm`, `rename` and `tag`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from aifx.commands.console.completion import complete_run, complete_tag
from aifx.commands.console.confirming import confirm_deletion
from aifx.commands.console.options import DryRunOption, JsonOption
from aifx.commands.console.terminal import terminal
from aifx.core.errors import AifxError
from aifx.core.json_files import readable_bytes
from aifx.core.project import find_project

RunArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the run.", autocompletion=complete_run)]


@dataclass(frozen=True)
class RemovedRun:
    run: str
    size_bytes: int


@dataclass(frozen=True)
class RemovedRuns:
    """What `aifx runs rm --json` prints."""

    removed: list[RemovedRun]
    dry_run: bool


@dataclass(frozen=True)
class RenamedRun:
    """What `aifx runs rename --json` prints."""

    run: str
    renamed_from: str


@dataclass(frozen=True)
class TaggedRun:
    """What `aifx runs tag --json` prints: the tags that the run has now."""

    run: str
    tags: tuple[str, ...]


def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names of the runs.", autocompletion=complete_run)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Delete runs with their checkpoints, metrics and reports.

    Examples:
        aifx runs rm trial
        aifx runs rm trial-1 trial-2 --yes
        aifx runs rm trial --dry-run

    On a terminal, aifx asks first. A script must use --yes. A run that is being trained cannot be deleted.
    """
    with terminal(json) as out:
        from aifx.runs.lock import is_held
        from aifx.runs.manage import remove_run, size_of

        project = find_project()
        runs = [project.existing_run(name) for name in dict.fromkeys(names)]
        sizes = {run.name: size_of(run) for run in runs}
        for run in runs:
            if is_held(run):
                raise AifxError(f"run {run.name!r} is being trained", "stop it first", f"aifx runs watch {run.name}")
        if not dry_run and not yes:
            hint = f"aifx runs rm {' '.join(sizes)} --yes"
            confirm_deletion(out, ", ".join(sizes), readable_bytes(sum(sizes.values())), hint)
        for run in runs:
            if not dry_run:
                remove_run(project, run)
            verb = "would delete" if dry_run else "deleted"
            out.print(f"{verb} {run.name}: {readable_bytes(sizes[run.name])}")
        out.document(RemovedRuns([RemovedRun(name, size) for name, size in sizes.items()], dry_run))


def rename(
    old: RunArgument,
    new: Annotated[str, typer.Argument(metavar="NEW", help="New name.")],
    json: JsonOption = False,
) -> None:
    """Rename a run. Its checkpoints, metrics and reports keep their content.

    Examples:
        aifx runs rename main baseline

    A run that is being trained cannot be renamed. Trackers keep the old name.
    """
    with terminal(json) as out:
        from aifx.runs.manage import rename_run

        project = find_project()
        run = rename_run(project, project.existing_run(old), new)
        out.document(RenamedRun(run.name, old))
        out.print(f"renamed {old} to {run.name}")


def tag(
    name: RunArgument,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="TAG", help="Tags to add.", autocompletion=complete_tag)
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="TAG", help="Tag to remove. Can be repeated.", autocompletion=complete_tag),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Add tags to a run, remove tags, or print them.

    Examples:
        aifx runs tag main                        print the tags
        aifx runs tag main baseline paper         add two tags
        aifx runs tag main --remove paper
        aifx runs ls --tag baseline               list the runs with a tag
    """
    with terminal(json) as out:
        from aifx.runs.manage import change_tags

        run = find_project().existing_run(name)
        after = change_tags(run, tags or (), remove or ())
        out.document(TaggedRun(run.name, after))
        out.print(f"{run.name}: {', '.join(after) or 'no tag'}")
