"""Versions of `aifx data`: ls, verify, diff, lineage, why, gc, erase and push."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.confirming import confirm_deletion
from aifx.commands.console.options import DryRunOption, JsonOption, RequestOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import FILES_HELP, DatasetArgument, MemoryOption, RootOption, WorkersOption, names_of
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted
from aifx.core.sanitize import one_line
from aifx.verbs.catalogs import DEFAULT_MEMORY

if TYPE_CHECKING:
    from aifx.verbs.data_versions import (
        CollectedGarbage,
        Erasure,
        Explanation,
        LineageVersion,
        RowHistory,
        VersionDifference,
    )


MOST_SOURCES = 20


def ls(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="List the versions of this data set. By default of all.")
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """List data sets and their versions.

    Examples:
        aifx data ls
        aifx data ls corpus --json
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_ls

        found = data_ls(name, root=root)
        out.result(found)
        for one in found.unreadable:
            out.log(f"{one.reference} cannot be read: {one.why}")
        for hint in dict.fromkeys(one.hint for one in found.unreadable):
            out.log(f"hint: {hint}")
        if not found.versions:
            if not found.unreadable:
                out.log(f"no data set in {found.root}: aifx data add NAME FILES makes one")
            return
        rows = [
            (
                f"{version.reference}{' *' if version.is_latest else ''}",
                f"{version.rows:,}",
                readable_bytes(version.size_bytes),
                readable_bytes(version.own_bytes),
                version.step,
                ", ".join(version.licenses),
            )
            for version in found.versions
        ]
        columns = ["version", "rows", "size", "own files", "made by", "licences"]
        out.table(columns, rows, right=["rows", "size", "own files"])


def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME…]", help=f"Versions to verify. By default the latest of each. {FILES_HELP}"),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Verify every version of every data set.")] = False,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Compare each file of a version with its SHA-256.

    Examples:
        aifx data verify corpus
        aifx data verify corpus@3f2a --json
        aifx data verify --all
        aifx data verify data.train     read the files that training reads, except those of stores

    Exits 1 if a file is damaged or missing.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_verify

        found = data_verify(*(names or ()), all=all_, root=root)
        out.result(found)
        for version in found.versions:
            state = "damaged" if version.damages else "whole"
            out.print(
                f"{version.reference}: {state}: {counted(version.files, 'file')}, {readable_bytes(version.size_bytes)}"
            )
            for damage in version.damages:
                out.print(f"  {damage}")
            if version.unread:
                out.print(f"  {counted(version.unread, 'file')} of a store: compared by ETag or time, not read")


def print_page(out: Output, name: str, root: str | None) -> None:
    """Print what a version is, or the files of a key of aifx.toml: rows, columns, sources, and runs trained on it."""
    from aifx.verbs.data_versions import data_show_version

    page = data_show_version(name, root=root)
    out.result(page)
    rows = "" if page.rows is None else f", {counted(page.rows, 'row')}"
    out.print(f"{page.reference}: {page.kind}{rows}, {readable_bytes(page.size_bytes)}")
    if page.step:
        made_from = f" from {', '.join(page.parents)}" if page.parents else ""
        out.print(f"made by {page.step} {page.settings_text}".rstrip() + made_from)
    if page.runs:
        out.print(f"trained on it: {', '.join(page.runs)}")
    if page.columns:
        out.print("")
        out.table(["column", "type"], list(page.columns.items()))
    if page.sources:
        out.print("")
        licences = ["licence"] if page.step else []  # nobody has said so of files
        files = [
            (one.name, None if one.rows is None else f"{one.rows:,}", readable_bytes(one.bytes), one.license)
            for one in page.sources[:MOST_SOURCES]
        ]
        columns = ["file", "rows", "size", *licences]
        out.table(columns, [row[: len(columns)] for row in files], right=["rows", "size"])
        if len(page.sources) > len(files):
            out.print(f"and {len(page.sources) - len(files):,} more files")


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="Data set: NAME for its latest version, or NAME@VERSION.")],
    second: Annotated[
        str | None, typer.Argument(metavar="[B]", help="Version to compare it with. By default the parent of A with A.")
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two versions: rows added, removed and changed, by source and by the rule that dropped them.

    Examples:
        aifx data diff corpus                   what the last step changed
        aifx data diff corpus@3f2a corpus       from one version to the latest
        aifx data diff corpus@3f2a corpus --json

    Rows are the same if they have the same id (_row) and the same content.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_diff

        found = data_diff(first, second, root=root)
        out.result(found)
        for reference, rows, size in zip(found.references, found.rows, found.size_bytes, strict=True):
            out.print(f"{reference}: {counted(rows, 'row')}, {readable_bytes(size)}")
        if not found.is_different:
            out.print("no difference")
            return
        _print_difference(out, found)


def _print_difference(out: Output, found: VersionDifference) -> None:
    counts = (("added", found.added), ("removed", found.removed), ("changed", found.changed), ("the same", found.same))
    out.print(", ".join(f"{count:,} {name}" for name, count in counts))
    for verb, names in (("new", found.columns_added), ("removed", found.columns_removed)):
        if names:
            out.print(f"{verb} columns: {', '.join(names)}")
    for name, (old, new) in found.columns_retyped.items():
        out.print(f"column {name}: {old} -> {new}")
    if found.removed_by:
        out.print("")
        rows = [(f"{one.step} {one.reference}", one.rule, f"{one.rows:,}") for one in found.removed_by]
        out.table(["removed by", "rule", "rows"], rows, right=["rows"])
    if found.by_source:
        out.print("")
        sources = found.by_source[:MOST_SOURCES]
        numbers = [(one.source, f"{one.added:,}", f"{one.removed:,}", f"{one.changed:,}") for one in sources]
        columns = ["source", "added", "removed", "changed"]
        out.table(columns, numbers, right=columns[1:])
        if len(found.by_source) > len(sources):
            out.print(f"and {len(found.by_source) - len(sources):,} more sources")


def lineage(name: DatasetArgument, root: RootOption = None, json: JsonOption = False) -> None:
    """Print the versions that one was made from, with their steps, indexes and tables, and the runs trained on them.

    Examples:
        aifx data lineage corpus
        aifx data lineage corpus@3f2a --json
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_lineage

        found = data_lineage(name, root=root)
        out.result(found)
        by_reference = {one.reference: one for one in found.versions}
        for line in _tree(found.reference, by_reference, "", ""):
            out.print(line)


def _tree(reference: str, versions: Mapping[str, LineageVersion], first: str, rest: str) -> Iterator[str]:
    one = versions[reference]
    size = "deleted" if one.rows is None else counted(one.rows, "row")
    yield f"{first}{one.reference}  {size}"
    branch = "│ " if one.parents else "  "
    yield f"{rest}{branch}{one.step} {one.settings_text}".rstrip()
    if one.dropped_by:
        dropped = ", ".join(f"{rule} {count:,}" for rule, count in one.dropped_by.items())
        yield f"{rest}{branch}dropped: {dropped}"
    if one.sources:
        noun = "file" if one.sources == 1 else "files"
        yield f"{rest}{branch}from {one.sources:,} {noun}; licences: {', '.join(one.licenses) or 'unknown'}"
    if one.runs:
        yield f"{rest}{branch}trained on it: {', '.join(one.runs)}"
    for output in one.outputs:
        yield f"{rest}{branch}{output.step}: {output.name}"
    for parent in one.parents:
        is_last = parent == one.parents[-1]
        yield from _tree(parent, versions, f"{rest}{'└─' if is_last else '├─'}", f"{rest}{'  ' if is_last else '│ '}")


def why(
    row: Annotated[
        str | None, typer.Argument(metavar="[ROW]", help="Id of a row (_row) or its beginning, or SOURCE:NUMBER.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="TEXT", help="Find rows by a part of their text, in any case."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help=f"Data set or version to search. By default the latest of each. {FILES_HELP}",
        ),
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Explain a row: its source, the steps that it passed, and the step and rule that dropped it.

    Examples:
        aifx data why 3f2a91c07be4-12
        aifx data why books/moby.txt:12 --dataset corpus
        aifx data why --text "call me Ishmael"
        aifx data why --text "call me Ishmael" --dataset data.train

    The rows of earlier versions are searched too, so that dropped rows are found.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_why

        found = data_why(row, text=text, dataset=dataset, root=root)
        out.result(found)
        _print_explanation(out, found)


def _print_explanation(out: Output, found: Explanation) -> None:
    if len(found.rows) > 1:
        rows = [(one.row, one.source, " ".join((one.text or "").split())[:60]) for one in found.rows]
        out.table(["row", "source", "text"], rows)
        out.log("several rows are meant: aifx data why ROW explains one")
    for history in found.histories:
        _print_history(out, history)
    for bad in found.quarantined:
        line = f":{bad.line}" if bad.line is not None else ""
        out.print(f"{bad.source}{line} is in the quarantine of {bad.reference}: {bad.reason}")


def _print_history(out: Output, one: RowHistory) -> None:
    out.print(f"{one.row} is {'' if one.is_in_version else 'not '}in {one.reference}")
    if one.source is not None:
        number = "" if one.number is None else f"row {one.number:,} of "
        out.print(f"from {number}{one.source}, licence {one.license or 'unknown'}")
    if one.found is not None and one.found.text:
        out.print(f"  {' '.join(one.found.text.split())}")
    steps = [(step.step, step.reference, step.outcome, step.rule) for step in one.steps]
    out.print("")
    out.table(["step", "version", "outcome", "rule"], steps)
    for step in one.steps:
        if step.twin is not None:
            out.print(f"\nits twin {step.twin.row} of {step.twin.source}:")
            out.print(f"  {' '.join((step.twin.text or '').split())}")
        if step.joined is not None:
            out.print(f"\njoined with {step.joined}")
        if step.labels:
            out.print("")
            labels = [(one.label, one.labeller, one.time, one.note) for one in step.labels]
            out.table(["label", "labeller", "time", "note"], labels)


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
    "unused": "version",
}


def gc(
    root: RootOption = None,
    versions: Annotated[
        bool, typer.Option("--versions", help="Also delete versions that nothing refers to; name those that stay.")
    ] = False,
    older_than: Annotated[
        float,
        typer.Option("--older-than", metavar="DAYS", help="Least days since such a version was made. By default 7."),
    ] = 7,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Delete what killed and unfinished commands left among the data sets, and versions that nothing uses.

    Examples:
        aifx data gc --dry-run
        aifx data gc --versions --older-than 30 --dry-run
        aifx data gc --root s3://bucket/datasets --yes

    A command that was killed does its work from the beginning after that. aifx keeps what a process uses. With
    --versions, it keeps each version that a name, a run, aifx.toml, a recipe, a label file or the lease of another
    project names, and what that was made from. On a terminal, it asks first. A script must use --yes.
    """
    with terminal(json) as out:
        from aifx.core.artifact import short
        from aifx.verbs.data_versions import data_gc

        def confirm(planned: CollectedGarbage) -> None:
            are_below = {one.path.startswith(f"{planned.root}/") for one in planned.deleted}
            places = [planned.root] * (True in are_below) + ["the cache"] * (False in are_below)
            unused = sum(one.kind == "unused" for one in planned.deleted)
            rest = len(planned.deleted) - unused
            parts = [counted(rest, "leftover")] * (rest > 0) + [counted(unused, "version")] * (unused > 0)
            what = f"{' and '.join(parts)} in {' and '.join(places)}"
            options = f"{f'--root {shlex.quote(root)} ' if root else ''}{'--versions ' if versions else ''}"
            hint = f"aifx data gc {options}{f'--older-than {older_than:g} ' if older_than != 7 else ''}--yes"
            confirm_deletion(out, what, readable_bytes(planned.bytes), hint)

        found = data_gc(
            versions=versions, older_than=older_than, dry_run=dry_run, confirm=None if yes else confirm, root=root
        )
        out.result(found)
        verb = "would delete" if dry_run else "deleted"
        for one in (*found.deleted, *found.kept):
            path = re.sub("[0-9a-f]{64}", lambda digest: short(digest[0]), one.path.removeprefix(f"{found.root}/"))
            reason = f": {one.kept}" if one.kept else ""
            size = readable_bytes(one.bytes)
            out.print(f"{'kept' if one.kept else verb} {path} ({DESCRIPTIONS[one.kind]}, {size}){reason}")
        out.print(f"{verb} {readable_bytes(found.bytes)}" if found.deleted else "nothing to delete")


def erase(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help=f"Data set, whose latest version is meant, or a folder of records. {FILES_HELP}"
        ),
    ],
    where: Annotated[
        str, typer.Option("--where", metavar="SQL", help="Condition of the rows to erase, in SQL over their columns.")
    ],
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            help="Also delete all versions of the data set that hold the rows; for files, the caches of text; for "
            "records, their requests and answers.",
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
        aifx data erase runs/main/records --where "input->>'customer' = '17'" --purge

    Earlier versions still hold the rows until --purge deletes them. On a terminal, aifx asks first; a script must use
    --yes. No record has the condition or the rows, only their number and a digest of their ids.

    aifx changes no file that the configuration names. Of these, it lists the file and the line of each row.

    Records of `aifx serve` keep their chain without the content. Their columns are id, time, model, fingerprint, input
    (the prompt, or a row as JSON) and output (the text).
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_erase

        def confirm(plan: Erasure) -> None:
            sizes = {one.reference: one.size_bytes for one in plan.held_by}
            size = sum(sizes.get(one, 0) or _bytes_in(Path(one)) for one in plan.purged)
            hint = f"aifx data erase {name} --where SQL --purge --yes"
            if plan.records:
                chains = {Path(one.rpartition(":")[0]) for one in plan.records}
                size = sum(chain.with_suffix(".payload").stat().st_size for chain in chains)
                what = f"the content of {counted(plan.rows, 'record')} of {name}"
                confirm_deletion(out, what, f"among {readable_bytes(size)}", hint)
                return
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
        if "/" in name:
            _print_erased_records(out, plan)
        else:
            _print_erasure(out, plan, dry_run)


def _print_erased_records(out: Output, plan: Erasure) -> None:
    if not plan.rows:
        out.print(f"no record of {plan.reference} meets the condition")
        return
    out.print(f"the condition holds for {counted(plan.rows, 'record')} of {plan.reference}")
    for place in plan.records:
        out.print(f"{one_line(place)} {'holds its request and answer' if plan.dry_run else 'is erased'}")
    if plan.dry_run:
        out.log("--purge erases them")


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
    for reference in plan.rewritten:
        out.print(f"{reference} has none of them, and {'would hold' if dry_run else 'holds'} its files itself")
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


def push(
    name: DatasetArgument,
    table: Annotated[
        str, typer.Argument(metavar="URL", help="Table: postgresql://HOST/DATABASE/TABLE, or …/SCHEMA.TABLE.")
    ],
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns", metavar="NAME,…", help="Columns to write. By default all but those that aifx adds, as _row."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Replace the rows of a table that is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at the table, print what would be written, and write nothing.")
    ] = False,
    request: RequestOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Write the rows of a data set into a table of PostgreSQL, all in one transaction.

    Examples:
        aifx data push orders postgresql://writer@db.example/shop/clean_orders --dry-run
        aifx data push orders@3f2a postgresql://writer@db.example/shop/sales.clean_orders
        aifx data push orders postgresql://writer@db.example/shop/clean_orders --columns id,_split --yes

    The password comes from AIFX_DATABASE_PASSWORD or PostgreSQL's own variables and files. If aifx or the server is
    killed, the table is unchanged.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_push

        chosen = names_of(columns, "--columns", "--columns id,text") if columns is not None else None
        found = data_push(name, table, columns=chosen, replace=yes, dry_run=dry_run, request=request, root=root)
        out.result(found)
        verb = "written to" if found.is_written else "would be written to"
        there = ", as an earlier call with this request id reported" if found.is_repeated else ""
        out.print(f"{found.reference}: {counted(found.rows, 'row')} {verb} {found.table}{there}")
        if found.replaced_rows is not None:
            out.print(f"in place of {counted(found.replaced_rows, 'row')}")
        out.table(["column", "type"], [(one.name, one.type) for one in found.columns])
