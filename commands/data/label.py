"""`aifx data label`: labels of rows, and their quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, MemoryOption, RootOption, WorkersOption, names_of, print_made
from aifx.core.json_values import encode_json
from aifx.core.plurals import counted
from aifx.verbs.catalogs import DEFAULT_MEMORY

if TYPE_CHECKING:
    from aifx.verbs.data_labels import Agreement


SHOWN_DISAGREEMENTS = 10
SHOWN_SUSPECTS = 20


def agreement(
    name: DatasetArgument,
    min_agreement: Annotated[
        float | None,
        typer.Option("--min-agreement", metavar="ALPHA", max=1.0, help="Exit 1 if alpha is below this bound."),
    ] = None,
    column: ColumnOption = "label",
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how far labellers agree: Krippendorff's alpha, and the rows on which they differ.

    Examples:
        aifx data label agreement reviews
        aifx data label agreement reviews --min-agreement 0.8

    Alpha is 1 if all agree and 0 if they agree as often as chance would. It counts rows with labels of two labellers
    or more.
    """
    with terminal(json) as out:
        from aifx.verbs.data_labels import data_label_agreement

        found = data_label_agreement(name, min_agreement=min_agreement, column=column, root=root)
        out.result(found)
        _print_agreement(out, found)


def suspects(
    name: DatasetArgument,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="Probabilities of a model that was not trained on these labels, from aifx predict.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the suspects to FILE (.jsonl).")
    ] = None,
    column: ColumnOption = "label",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the folds.")] = 0,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Find labels that are probably wrong, by confident learning (cleanlab).

    Examples:
        aifx data label suspects pictures
        aifx data label suspects pictures --predictions predictions.jsonl --output suspects.jsonl
        aifx data label serve pictures --labels bag,shirt --uncertain suspects.jsonl --relabel

    Without --predictions, a logistic regression on words or pixels judges each row in cross-validation.
    """
    with terminal(json) as out:
        from aifx.verbs.data_labels import data_label_suspects

        found = data_label_suspects(name, predictions=predictions, output=output, column=column, seed=seed, root=root)
        out.result(found)
        where = f", in {output}" if output is not None else ""
        out.print(f"suspects: {len(found.suspects):,} of {counted(found.rows, 'label')}{where}")
        if found.unjudged:
            out.log(
                f"not judged: {counted(found.unjudged, 'label')}, which too few rows have or which have no prediction"
            )
        rows = [(one.row, one.label, one.likelier, f"{one.probability:.3f}") for one in found.suspects[:SHOWN_SUSPECTS]]
        out.table(["row", "label", "likelier", "probability"], rows, right=["probability"])
        if len(found.suspects) > len(rows):
            out.print(f"and {len(found.suspects) - len(rows):,} more")


def _print_agreement(out: Output, found: Agreement) -> None:
    name = found.reference.partition("@")[0]
    if not found.rows:
        out.log(f"column {found.column} of {name} has no labels yet: aifx data label serve {name}")
    elif not found.shared:
        out.log("no row has labels of two labellers: aifx data label serve --overlap 2")
    elif found.alpha is None:
        out.log("all labels are the same, so that alpha is not defined")
    alpha = "not defined" if found.alpha is None else f"{found.alpha:.3f}"
    bound = f", {'below' if not found.accepted else 'at least'} {found.min_agreement:g}" if found.min_agreement else ""
    out.print(
        f"alpha {alpha}{bound}: {found.shared:,} of {counted(found.rows, 'row')} have labels of two labellers or more"
    )
    if found.pairs:
        rows = [(*one.labellers, f"{one.rows:,}", f"{one.same:.1%}") for one in found.pairs]
        out.table(["labeller", "labeller", "rows", "same"], rows, right=["rows", "same"])
    if found.different:
        out.print("")
        disagreements = found.disagreements[:SHOWN_DISAGREEMENTS]
        texts = ["; ".join(f"{label}: {', '.join(who)}" for label, who in one.labels.items()) for one in disagreements]
        out.table(["row", "labels"], [(one.row, text) for one, text in zip(disagreements, texts, strict=True)])
        if found.different > len(disagreements):
            out.print(f"and {found.different - len(disagreements):,} more rows")


ColumnOption = Annotated[
    str, typer.Option("--column", metavar="NAME", help="Column that the labels are for. Each has its own labels.")
]

PairOption = Annotated[
    str | None,
    typer.Option("--pair", metavar="A,B", help="Columns with two texts, of which labellers choose the better one."),
]

FileFormatOption = Annotated[
    Literal["label-studio", "jsonl", "csv"] | None,
    typer.Option(
        "--format",
        metavar="label-studio|jsonl|csv",
        help="Format of FILE. By default that of its name: .json is Label Studio's.",
    ),
]


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
