"""`aifx data gc`."""

from __future__ import annotations

from aifx.commands.console.options import DryRunOption, JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import RootOption, find_catalog

WORK = {
    "step": "unfinished step",
    "read": "unfinished read",
    "index": "unfinished index",
    "tokens": "unfinished tokens",
    "removal": "unfinished removal",
    "file": "unfinished file",
    "version": "version without a manifest",
}


def gc(root: RootOption = None, dry_run: DryRunOption = False, json: JsonOption = False) -> None:
    """Delete what killed and unfinished commands left among the data sets.

    Examples:
        aifx data gc --dry-run
        aifx data gc --root s3://bucket/datasets --json

    A command that was killed does its work from the beginning after that. aifx keeps what a process uses, and every
    version.
    """
    with terminal(json) as out:
        from aifx.core.json_files import readable_bytes
        from aifx.curation.leftovers import collect_garbage

        catalog, _ = find_catalog(root)
        found = collect_garbage(catalog, dry_run=dry_run)
        out.document(found)
        verb = "would delete" if dry_run else "deleted"
        for one in (*found.deleted, *found.kept):
            path = one.path.removeprefix(f"{found.root}/")
            reason = f": {one.kept}" if one.kept else ""
            size = readable_bytes(one.bytes)
            out.print(f"{'kept' if one.kept else verb} {path} ({WORK[one.kind]}, {size}){reason}")
        out.print(f"{verb} {readable_bytes(found.bytes)}" if found.deleted else "nothing to delete")
