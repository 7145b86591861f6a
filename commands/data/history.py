"""`aifx data diff`, `lineage` and `why`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import FILES_HELP, DatasetArgument, RootOption
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.data_versions import Explanation, LineageVersion, RowHistory, VersionDifference

MOST_SOURCES = 20


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
        if step.labels:
            out.print("")
            labels = [(one.label, one.labeller, one.time, one.note) for one in step.labels]
            out.table(["label", "labeller", "time", "note"], labels)
