"""`aifx data label`: give rows labels, and bring labels in and out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.label_options import ColumnOption, FileFormatOption, PairOption, open_shown
from aifx.commands.data.label_quality import agreement, suspects
from aifx.commands.data.options import (
    DEFAULT_MEMORY,
    DatasetArgument,
    MemoryOption,
    RootOption,
    WorkersOption,
    limits_of,
    names_of,
    print_made,
)
from aifx.core.errors import UsageError
from aifx.core.json_values import encode_json, plain
from aifx.core.plurals import counted

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


@dataclass(frozen=True)
class LabelServerStarted:
    """The line that `aifx data label serve --json` prints when the page can be opened.

    Attributes:
        url: with the token.
        rows: to label.
        labels: that can be chosen.
        file: that has the labels.
    """

    url: str
    reference: str
    column: str
    kind: Literal["text", "images", "table", "chat", "pairs"]
    rows: int
    labels: tuple[str, ...]
    file: str


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
        from aifx.core.web.sockets import bind, url_of
        from aifx.curation.labels.app import Labelling, open_server, token_of
        from aifx.curation.labels.queue import LabelQueue, queued_rows, sample_rows
        from aifx.curation.labels.store import open_log

        chosen = _choices(name, labels, pair)
        catalog, version, shown = open_shown(name, root, column, pair)
        _check_names("--labels", chosen)
        _check_names("--pair", shown.columns if pair is not None else ())
        _check_names("--labeller", [labeller])
        with open_log(catalog, version.manifest.name, column) as log:
            if uncertain is None:
                rows = sample_rows(version, column, sample, seed, relabel=relabel)
            else:
                from aifx.curation.labels.queue import least_certain

                rows = least_certain(version, shown, column, uncertain, sample, relabel=relabel)
            queue = LabelQueue(queued_rows(version, shown, rows), log.state, overlap)
            labelling = Labelling(version, shown, column, chosen, queue, log, labeller)
            bound = bind("127.0.0.1", port, port_hint=f"aifx data label serve {name} --port 0")
            token = token_of(log.path)
            server = open_server(labelling, bound, token)
            url = f"{url_of(bound)}/#token={token}"
            started = LabelServerStarted(
                url, version.reference, column, shown.kind, len(rows), labelling.choices, str(log.path)
            )

            def report() -> None:
                out.log(f"label {counted(len(rows), 'row')} of {version.reference} at {url}. Ctrl-C stops it")
                if json:
                    out.write(encode_json({"schema_version": 1, **plain(started)}) + "\n")

            server.run(report).check()


def _check_names(option: str, names: Iterable[str]) -> None:
    """Raise UsageError for a name that the file of labels does not take: the page would lose each label."""
    from aifx.curation.labels.store import MOST_CHARACTERS, is_name

    for name in names:
        if not is_name(name):
            why = f"it has at most {MOST_CHARACTERS} characters, and no control characters"
            raise UsageError(f"{option} has {name[:50]!r}", why, "give it a plain name")


def _choices(name: str, labels: str | None, pair: str | None) -> tuple[str, ...]:
    """The labels of --labels. Raises UsageError."""
    hint = f"aifx data label serve {name} --labels yes,no"
    if pair is not None:
        if labels is not None:
            why = "the labels of a pair are its columns and a tie"
            raise UsageError("--labels cannot be used with --pair", why, "leave one of them out")
        return ()
    if labels is None:
        raise UsageError("--labels is missing", "labellers choose one of them", hint)
    chosen = names_of(labels, "--labels", hint)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise UsageError(f"--labels {labels} is no choice", "it takes two different labels or more", hint)
    return tuple(chosen)


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
        from aifx.curation.labels.files import export_labels, format_of, labeling_config
        from aifx.curation.labels.store import read_state

        written_as = format_of(file, format)
        catalog, version, shown = open_shown(name, root, column, pair)
        state = read_state(catalog, version.manifest.name, column)
        found = export_labels(version, shown, column, state, file, written_as)
        out.document(found)
        out.print(f"{counted(found.labels, 'label')} of {counted(found.rows, 'row')} in {file}")
        if not state.labels():
            out.log(f"column {column} of {name} has no labels yet: aifx data label serve {name}")
        if found.absent:
            out.log(f"left out {counted(found.absent, 'label')} of rows that {found.reference} does not have")
        if written_as == "label-studio" and found.labels:
            values = sorted({label for of_row in state.labels().values() for label in of_row.values()})
            out.log(f"a project that imports it needs this configuration: {labeling_config(shown, column, values)}")


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
        from aifx.curation.labels.files import format_of, import_labels, read_labels
        from aifx.curation.labels.store import open_log

        read_as = format_of(file, format)
        catalog, version, shown = open_shown(name, root, column, pair)
        with open_log(catalog, version.manifest.name, column) as log:
            labels = read_labels(file, read_as, shown, column, predictions=predictions)
            found = import_labels(log, version, shown, column, labels, labeller)
        out.document(found)
        known = f", {found.known:,} were there already" if found.known else ""
        out.print(f"{counted(found.added, 'label')} added to column {column} of {version.manifest.name}{known}")
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
        from aifx.curation.execution import execute
        from aifx.curation.labels.applying import ApplyLabels, check_labels, decide
        from aifx.curation.labels.store import read_state

        catalog, version, _ = open_shown(name, root, column, None)
        state = read_state(catalog, version.manifest.name, column)
        labels = decide(state.labels())
        check_labels(version, column, labels)
        made = execute(
            ApplyLabels((version,), column, labels), version.manifest.name, catalog, limits_of(memory, workers)
        )
        print_made(out, made)
        facts = made.version.manifest.facts
        out.print(f"{facts['rows_labelled']:,} of its rows have a label, {facts['rows_changed']:,} another than before")
        if undecided := len(state.labels()) - len(labels):
            out.log(f"no majority for {counted(undecided, 'row')}: aifx data label agreement {version.manifest.name}")


app.command("agreement")(agreement)
app.command("suspects")(suspects)
