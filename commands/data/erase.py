"""`aifx data erase`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.confirming import confirm_deletion
from aifx.commands.console.options import DryRunOption, JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import FILES_HELP, MemoryOption, RootOption, WorkersOption
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted
from aifx.core.sanitize import one_line
from aifx.verbs.catalogs import DEFAULT_MEMORY

if TYPE_CHECKING:
    from aifx.verbs.data_versions import Erasure


def erase(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"Data set, whose latest version is meant. {FILES_HELP}")],
    where: Annotated[
        str, typer.Option("--where", metavar="SQL", help="Condition of the rows to erase, in SQL over their columns.")
    ],
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            help="Also delete all versions of the data set that hold the rows; for files, the caches of text.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: DryRunOption = False,
    memory: MemoryOption = DEFAULT_MEMORY,
    workers: WorkersOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Make a version without the rows that meet a condition, and list the runs trained on them.

    Examples:
        aifx data erase corpus --where "_source = 'letters.jsonl'" --dry-run
        aifx data erase corpus --where "author = 'A. Smith'"
        aifx data erase corpus --where "author = 'A. Smith'" --purge --yes
        aifx data erase data.train --where "contains(text, 'A. Smith')" --purge

    Earlier versions still hold the rows until --purge deletes them. On a terminal, aifx asks first; a script must use
    --yes. No record has the condition or the rows, only their number and a digest of their ids.

    aifx changes no file that the configuration names. Of these, it lists the file and the line of each row.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_erase

        def confirm(plan: Erasure) -> None:
            sizes = {one.reference: one.size_bytes for one in plan.held_by}
            size = sum(sizes.get(one, 0) or _bytes_in(Path(one)) for one in plan.purged)
            hint = f"aifx data erase {name} --where SQL --purge --yes"
            confirm_deletion(out, ", ".join(plan.purged), readable_bytes(size), hint)

        plan = data_erase(
            name,
            where,
            purge=purge,
            dry_run=dry_run,
            confirm=None if yes else confirm,
            memory=memory,
            workers=workers,
            root=root,
        )
        out.result(plan)
        _print_erasure(out, plan, dry_run)


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*"))


def _print_erasure(out: Output, plan: Erasure, dry_run: bool) -> None:
    name = plan.reference.partition("@")[0]
    for reference in plan.unsearched:
        out.log(f"{reference} was not searched: it cannot evaluate the condition")
    if not plan.rows:
        out.print(f"no row of {name} meets the condition")
        if not plan.purged:
            return
    else:
        out.print(f"the condition holds for {counted(plan.rows, 'row')} of {name}")
    if plan.made is not None:
        out.print(f"{plan.made}, without them, is the latest version now")
    would = "would be" if dry_run else "is"
    for place in plan.places:
        out.print(f"remove {one_line(place)}")
    for folder in sorted({*plan.purged} - {one.reference for one in plan.held_by}):
        out.print(f"{folder} {would} deleted")
    for one in plan.held_by:
        fate = f", and {would} deleted" if one.reference in plan.purged else ""
        out.print(f"{one.reference} has {one.rows:,} of them{fate}")
    for run in plan.runs:
        out.print(f"run {run.run} trained on {run.reference}")
    for other in dict.fromkeys(reference.partition("@")[0] for reference in plan.remaining):
        if not dry_run:
            out.log(f"versions of {other} still hold rows: aifx data erase {other} --where SQL --purge deletes them")
