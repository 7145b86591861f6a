"""`aifx runs rm`, `rename` and `tag`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.confirming import confirm_deletion
from aifx.commands.console.options import DryRunOption, JsonOption
from aifx.commands.console.terminal import terminal
from aifx.core.json_files import readable_bytes
from aifx.verbs.completion import complete_run, complete_tag

if TYPE_CHECKING:
    from aifx.verbs.runs import RemovedRuns

RunArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the run.", autocompletion=complete_run)]


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
        from aifx.verbs.runs import runs_rm

        def confirm(removed: RemovedRuns) -> None:
            listed = [one.run for one in removed.removed]
            size = readable_bytes(sum(one.size_bytes for one in removed.removed))
            confirm_deletion(out, ", ".join(listed), size, f"aifx runs rm {' '.join(listed)} --yes")

        found = runs_rm(*names, dry_run=dry_run, confirm=None if yes else confirm)
        out.result(found)
        verb = "would delete" if dry_run else "deleted"
        for one in found.removed:
            out.print(f"{verb} {one.run}: {readable_bytes(one.size_bytes)}")


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
        from aifx.verbs.runs import runs_rename

        renamed = runs_rename(old, new)
        out.result(renamed)
        out.print(f"renamed {old} to {renamed.run}")


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
        from aifx.verbs.runs import runs_tag

        tagged = runs_tag(name, *(tags or ()), remove=remove or ())
        out.result(tagged)
        out.print(f"{tagged.run}: {', '.join(tagged.tags) or 'no tag'}")
