"""`aifx data label`: give rows labels, and bring labels in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.label_options import ColumnOption, FileFormatOption, PairOption
from aifx.commands.data.label_quality import agreement, suspects
from aifx.commands.data.options import DatasetArgument, MemoryOption, RootOption, WorkersOption, names_of, print_made
from aifx.core.json_values import encode_json
from aifx.core.plurals import counted
from aifx.verbs.catalogs import DEFAULT_MEMORY

app = typer.Typer(
    help="""Label rows of a data set on a page in a browser, and use the labels.

    Examples:
        aifx data label serve reviews --labels good,bad
        aifx data label import reviews tasks.json
        aifx data label export reviews labels.json
        aifx data label agreement reviews --min-agreement 0.8
        aifx data label suspects reviews   labels that are probably wrong
        aifx data label apply reviews      a version with the labels in a column

    Labels are kept beside the versions of the data set. A line that was written is never changed.
    """
)


@app.command("serve")
def serve(
    name: DatasetArgument,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B,…", help="Labels to choose from; keys 1 to 9 give the first.")
    ] = None,
    pair: PairOption = None,
    sample: Annotated[int, typer.Option("--sample", metavar="N", min=1, help="Number of rows to label.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random sample.")] = 0,
    uncertain: Annotated[
        str | None,
        typer.Option(
            "--uncertain",
            metavar="RUN|FILE",
            help="Take the rows of which a run, or a file of aifx predict, is least certain.",
        ),
    ] = None,
    relabel: Annotated[
        bool, typer.Option("--relabel", help="Also take rows that have a value in the column already.")
    ] = False,
    overlap: Annotated[
        int, typer.Option("--overlap", metavar="N", min=1, help="Labels per row, each of another labeller.")
    ] = 1,
    labeller: Annotated[
        str, typer.Option("--labeller", metavar="NAME", help="Labeller. By default the page asks for the name.")
    ] = "",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Listen at PORT; 0 takes a free one.")
    ] = 8010,
    column: ColumnOption = "label",
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Serve a page on this machine on which people label rows by keyboard.

    Examples:
        aifx data label serve reviews --labels positive,negative,neutral
        aifx data label serve pictures --labels bag,shirt --uncertain main --sample 50
        aifx data label serve answers --pair first,second --overlap 2
        ssh -L 8010:127.0.0.1:8010 HOST    and open the page from another machine

    The page listens on loopback alone. The same command resumes where it stopped. Ctrl-C ends it.
    """
    with terminal(json, streams=True) as out:
        from aifx.verbs.data_labels import data_label_serve

        chosen = (
            names_of(labels, "--labels", f"aifx data label serve {name} --labels yes,no") if labels is not None else ()
        )
        server = data_label_serve(
            name,
            chosen,
            pair=pair,
            sample=sample,
            seed=seed,
            uncertain=uncertain,
            relabel=relabel,
            overlap=overlap,
            labeller=labeller,
            port=port,
            column=column,
            root=root,
        )
        started = server.listening

        def report() -> None:
            rows = counted(started.rows, "row")
            out.log(f"label {rows} of {started.reference} at {started.url}. Ctrl-C stops it")
            if json:
                out.write(encode_json(started.document()) + "\n")

        server.wait(report)


@app.command("export")
def export(
    name: DatasetArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")],
    format: FileFormatOption = None,
    column: ColumnOption = "label",
    pair: PairOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Write labels to a file: JSON for Label Studio with the rows' content, or JSON Lines or CSV with their ids.

    Examples:
        aifx data label export reviews labels.json
        aifx data label export reviews labels.csv
        aifx data label export answers pairs.json --pair first,second

    The latest label of each labeller is written.
    """
    with terminal(json) as out:
        from aifx.verbs.data_labels import data_label_export

        found = data_label_export(name, file, format=format, column=column, pair=pair, root=root)
        out.result(found)
        out.print(f"{counted(found.labels, 'label')} of {counted(found.rows, 'row')} in {file}")
        if found.absent:
            out.log(f"left out {counted(found.absent, 'label')} of rows that {found.reference} does not have")


@app.command("import")
def import_(
    name: DatasetArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File with labels.")],
    format: FileFormatOption = None,
    labeller: Annotated[
        str, typer.Option("--labeller", metavar="NAME", help="Labeller of labels for which FILE names none.")
    ] = "import",
    predictions: Annotated[
        bool,
        typer.Option("--predictions", help="Also import the predictions of tasks, as labels by their models."),
    ] = False,
    column: ColumnOption = "label",
    pair: PairOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Add labels from a file: JSON of Label Studio, or JSON Lines or CSV with the fields row and label.

    Examples:
        aifx data label import reviews project-1.json
        aifx data label import reviews labels.jsonl --labeller ann
        aifx data label import answers pairs.json --pair first,second

    Tasks of Label Studio are found by the id of their row, otherwise by their content. To import the same file again
    changes nothing.
    """
    with terminal(json) as out:
        from aifx.verbs.data_labels import data_label_import

        found = data_label_import(
            name,
            file,
            format=format,
            labeller=labeller,
            predictions=predictions,
            column=column,
            pair=pair,
            root=root,
        )
        out.result(found)
        known = f", {found.known:,} were there already" if found.known else ""
        out.print(
            f"{counted(found.added, 'label')} added to column {column} of {found.reference.partition('@')[0]}{known}"
        )
        for reason, count in found.unused.items():
            out.log(f"{count:,} not used: {reason}")
        if found.examples:
            out.log(f"such as {found.examples[0]}")


@app.command("apply")
def apply(
    name: DatasetArgument,
    column: ColumnOption = "label",
    root: RootOption = None,
    memory: MemoryOption = DEFAULT_MEMORY,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Make a version whose column has the labels.

    Examples:
        aifx data label apply reviews
        aifx data label apply reviews@3f2a --column sentiment
        aifx train --set data.dataset=reviews

    A row gets the label that most of its labellers gave. Without a majority it keeps its value.
    """
    with terminal(json) as out:
        from aifx.verbs.data_labels import data_label_apply

        made = data_label_apply(name, column=column, root=root, memory=memory, workers=workers)
        print_made(out, made)
        facts = made.facts
        out.print(f"{facts['rows_labelled']:,} of its rows have a label, {facts['rows_changed']:,} another than before")


app.command("agreement")(agreement)
app.command("suspects")(suspects)
