"""`aifx data gc`."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.confirming import confirm_deletion
from aifx.commands.console.options import DryRunOption, JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import RootOption
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.data_versions import CollectedGarbage

DESCRIPTIONS = {
    "step": "unfinished step",
    "read": "unfinished read",
    "index": "unfinished index",
    "tokens": "unfinished tokens",
    "removal": "unfinished removal",
    "file": "unfinished file",
    "version": "version without a manifest",
    "files": "rows of files that a command looked at",
    "entries": "index entries of files that are gone",
}


def gc(
    root: RootOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Delete what killed and unfinished commands left among the data sets.

    Examples:
        aifx data gc --dry-run
        aifx data gc --root s3://bucket/datasets --yes

    A command that was killed does its work from the beginning after that. aifx keeps what a process uses, and every
    version. On a terminal, it asks first. A script must use --yes.
    """
    with terminal(json) as out:
        from aifx.core.artifact import short
        from aifx.verbs.data_versions import data_gc

        def confirm(planned: CollectedGarbage) -> None:
            are_below = {one.path.startswith(f"{planned.root}/") for one in planned.deleted}
            places = [planned.root] * (True in are_below) + ["the cache"] * (False in are_below)
            what = f"{counted(len(planned.deleted), 'leftover')} in {' and '.join(places)}"
            hint = f"aifx data gc {f'--root {shlex.quote(root)} ' if root else ''}--yes"
            confirm_deletion(out, what, readable_bytes(planned.bytes), hint)

        found = data_gc(dry_run=dry_run, confirm=None if yes else confirm, root=root)
        out.result(found)
        verb = "would delete" if dry_run else "deleted"
        for one in (*found.deleted, *found.kept):
            path = re.sub("[0-9a-f]{64}", lambda digest: short(digest[0]), one.path.removeprefix(f"{found.root}/"))
            reason = f": {one.kept}" if one.kept else ""
            size = readable_bytes(one.bytes)
            out.print(f"{'kept' if one.kept else verb} {path} ({DESCRIPTIONS[one.kind]}, {size}){reason}")
        out.print(f"{verb} {readable_bytes(found.bytes)}" if found.deleted else "nothing to delete")
