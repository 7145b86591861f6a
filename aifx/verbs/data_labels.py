"""Labels of the rows of a data set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from aifx.core.errors import UsageError
from aifx.core.plurals import counted
from aifx.core.results import Result
from aifx.verbs.arguments import StrPath
from aifx.verbs.catalogs import StepOptions, find_catalog, open_place
from aifx.verbs.servers import RunningServer

if TYPE_CHECKING:
    from aifx.curation.execution import MadeVersion
    from aifx.curation.labels.agreement import Agreement
    from aifx.curation.labels.files import ExportedLabels, ImportedLabels, LabelFormat
    from aifx.curation.labels.rows import View
    from aifx.curation.labels.suspects import Suspects
    from aifx.data.versions.catalog import Catalog
    from aifx.data.versions.manifest import Version

log = logging.getLogger(__name__)


def open_view(
    name: str, column: str, pair: str | None, root: str | None, project: StrPath
) -> tuple[Catalog, Version, View]:
    """The catalog, the version and what is shown of it. Raises UsageError, DataError."""
    from aifx.curation.labels.rows import view_of
    from aifx.data.versions.catalog import check_shards

    catalog, _ = find_catalog(root, project)
    version = catalog.open(name)
    check_shards(version)
    return catalog, version, view_of(version, column, pair)


@dataclass(frozen=True)
class LabelServerStarted(Result):
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


def data_label_serve(
    name: str,
    labels: Sequence[str] = (),
    *,
    pair: str | None = None,
    sample: int = 1000,
    seed: int = 0,
    uncertain: StrPath | None = None,
    relabel: bool = False,
    overlap: int = 1,
    labeller: str = "",
    port: int = 8010,
    column: str = "label",
    root: str | None = None,
    project: StrPath = ".",
) -> RunningServer[LabelServerStarted]:
    """Serve a page on this machine on which people label rows by keyboard.

    The page listens on loopback alone. The same call resumes where it stopped.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        labels: to choose from; keys 1 to 9 give the first.
        pair: "A,B": columns with two texts, of which labellers choose the better one.
        sample: number of rows to label.
        seed: of the random sample.
        uncertain: take the rows of which a run, or a file of `aifx predict`, is least certain.
        relabel: also take rows that have a value in the column already.
        overlap: labels per row, each of another labeller.
        labeller: by default the page asks for the name.
        port: to listen at; 0 takes a free one.
        column: that the labels are for. Each has its own labels.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> with aifx.data_label_serve("letters", ["good", "bad"], relabel=True, port=0) as server:
        ...     server.url.startswith("http://127.0.0.1:"), server.listening.rows
        (True, 1)
    """
    from aifx.core.web.server import bind, url_of
    from aifx.curation.labels.app import Labelling, open_server, token_of
    from aifx.curation.labels.rows import LabelQueue, queued_rows, sample_rows
    from aifx.curation.labels.store import open_log

    _check_choices(name, labels, pair)
    catalog, version, view = open_view(name, column, pair, root, project)
    _check_names("--labels", labels)
    _check_names("--pair", view.columns if pair is not None else ())
    _check_names("--labeller", [labeller])
    with ExitStack() as held:
        labels_log = held.enter_context(open_log(catalog, version.manifest.name, column))
        if uncertain is None:
            rows = sample_rows(version, column, sample, seed, relabel=relabel)
        else:
            from aifx.curation.labels.rows import least_certain

            rows = least_certain(version, view, column, os.fspath(uncertain), sample, relabel=relabel)
        queue = LabelQueue(queued_rows(version, view, rows), labels_log.state, overlap)
        labelling = Labelling(version, view, column, tuple(labels), queue, labels_log, labeller)
        bound = bind("127.0.0.1", port, port_hint=f"aifx data label serve {name} --port 0")
        token = token_of(labels_log.path)
        started = LabelServerStarted(
            url=f"{url_of(bound)}/#token={token}",
            reference=version.reference,
            column=column,
            kind=view.kind,
            rows=len(rows),
            labels=labelling.choices,
            file=str(labels_log.path),
        )
        return RunningServer(open_server(labelling, bound, token), started, held.pop_all())


def _check_choices(name: str, labels: Sequence[str], pair: str | None) -> None:
    """Check that there is a choice of labels. Raises UsageError."""
    hint = f"aifx data label serve {name} --labels yes,no"
    if pair is not None:
        if labels:
            why = "the labels of a pair are its columns and a tie"
            raise UsageError("--labels cannot be used with --pair", why, "leave one of them out")
        return
    if not labels:
        raise UsageError("--labels is missing", "labellers choose one of them", hint)
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UsageError(f"--labels {','.join(labels)} is no choice", "it takes two different labels or more", hint)


def _check_names(option: str, names: Iterable[str]) -> None:
    """Raise UsageError for a name that the file of labels does not take: the page would lose each label."""
    from aifx.curation.labels.store import MOST_CHARACTERS, is_name

    for name in names:
        if not is_name(name):
            why = f"it has at most {MOST_CHARACTERS} characters, and no control characters"
            raise UsageError(f"{option} has {name[:50]!r}", why, "give it a plain name")


def data_label_export(
    name: str,
    file: StrPath,
    *,
    format: LabelFormat | None = None,
    column: str = "label",
    pair: str | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> ExportedLabels:
    """Write labels to a file: JSON for Label Studio with the rows' content, or JSON Lines or CSV with their ids.

    The latest label of each labeller is written.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        file: to write.
        format: "label-studio", "jsonl" or "csv"; by default that of the file's name, where .json is Label Studio's.
        column: that the labels are for. Each has its own labels.
        pair: "A,B": columns with two texts, of which labellers choose the better one.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_label_export("letters", "exported.csv").labels
        1
    """
    from aifx.curation.labels.files import export_labels, format_of, labeling_config
    from aifx.curation.labels.store import read_state

    path = Path(file)
    written_as = format_of(path, format)
    catalog, version, view = open_view(name, column, pair, root, project)
    state = read_state(catalog, version.manifest.name, column)
    found = export_labels(version, view, column, state, path, written_as)
    if not state.labels():
        log.info("column %s of %s has no labels yet: aifx data label serve %s", column, name, name)
    if written_as == "label-studio" and found.labels:
        values = sorted({label for of_row in state.labels().values() for label in of_row.values()})
        config = labeling_config(view, column, values)
        log.info("a project that imports it needs this configuration: %s", config)
    return found


def data_label_import(
    name: str,
    file: StrPath,
    *,
    format: LabelFormat | None = None,
    labeller: str = "import",
    predictions: bool = False,
    column: str = "label",
    pair: str | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> ImportedLabels:
    """Add labels from a file: JSON of Label Studio, or JSON Lines or CSV with the fields row and label.

    Tasks of Label Studio are found by the id of their row, otherwise by their content. To import the same file again
    changes nothing.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        file: with labels.
        format: "label-studio", "jsonl" or "csv"; by default that of the file's name, where .json is Label Studio's.
        labeller: of labels for which the file names none.
        predictions: also import the predictions of tasks, as labels by their models.
        column: that the labels are for. Each has its own labels.
        pair: "A,B": columns with two texts, of which labellers choose the better one.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> (row,) = aifx.data_query("letters", "SELECT _row FROM data").rows[0]
        >>> with open("labels.csv", "w") as file:
        ...     print("row,label", file=file)
        ...     print(f"{row},good", file=file)
        >>> aifx.data_label_import("letters", "labels.csv", labeller="ann").added
        1
    """
    from aifx.curation.labels.files import format_of, import_labels, read_labels
    from aifx.curation.labels.store import open_log

    path = Path(file)
    read_as = format_of(path, format)
    catalog, version, view = open_view(name, column, pair, root, project)
    with open_log(catalog, version.manifest.name, column) as labels_log:
        labels = read_labels(path, read_as, view, column, predictions=predictions)
        return import_labels(labels_log, version, view, column, labels, labeller)


def data_label_apply(name: str, *, column: str = "label", **options: Unpack[StepOptions]) -> MadeVersion:
    """Make a version whose column has the labels.

    A row gets the label that most of its labellers gave. Without a majority it keeps its value.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        column: that the labels are for.

    Example:
        >>> aifx.data_label_apply("letters").facts["rows_labelled"]
        1
    """
    from aifx.curation.execution import made_version
    from aifx.curation.labels.agreement import ApplyLabels, check_labels, decide
    from aifx.curation.labels.rows import view_of
    from aifx.curation.labels.store import read_state
    from aifx.data.versions.catalog import check_shards

    place = open_place(**options)
    version = place.open(name)
    check_shards(version)
    view_of(version, column)
    found = read_state(place.catalog, version.manifest.name, column).labels()
    labels = decide(found)
    check_labels(version, column, labels)
    made = made_version(place.execute(ApplyLabels((version,), column, labels), version.manifest.name))
    if undecided := len(found) - len(labels):
        rows, hint = counted(undecided, "row"), f"aifx data label agreement {version.manifest.name}"
        log.info("no majority for %s: %s", rows, hint)
    return made


def data_label_agreement(
    name: str,
    *,
    min_agreement: float | None = None,
    column: str = "label",
    root: str | None = None,
    project: StrPath = ".",
) -> Agreement:
    """Measure how far labellers agree: Krippendorff's alpha, and the rows on which they differ.

    Alpha is 1 if all agree and 0 if they agree as often as chance would. It counts rows with labels of two labellers
    or more.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        min_agreement: least alpha for a good verdict.
        column: that the labels are for.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> agreement = aifx.data_label_agreement("letters")
        >>> agreement.rows, agreement.shared
        (1, 0)
    """
    from aifx.curation.labels.agreement import agreement_of
    from aifx.curation.labels.store import read_state

    catalog, _ = find_catalog(root, project)
    reference = "@".join(catalog.find(name))
    labels = read_state(catalog, reference.partition("@")[0], column).labels()
    return agreement_of(reference, column, labels, min_agreement)


def data_label_suspects(
    name: str,
    *,
    predictions: StrPath | None = None,
    output: StrPath | None = None,
    column: str = "label",
    seed: int = 0,
    root: str | None = None,
    project: StrPath = ".",
) -> Suspects:
    """Find labels that are probably wrong, by confident learning (cleanlab).

    Without predictions, a logistic regression on words or pixels judges each row in cross-validation.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        predictions: file with the probabilities of a model that was not trained on these labels, from `aifx predict`.
        output: file for the suspects, as lines of JSON.
        column: that the labels are for.
        seed: of the folds.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_label_suspects("letters", output="suspects.jsonl")
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.core.json_files import write_text
    from aifx.core.json_values import encode_json
    from aifx.curation.labels.store import read_state
    from aifx.curation.labels.suspects import find_suspects

    catalog, version, view = open_view(name, column, None, root, project)
    state = read_state(catalog, version.manifest.name, column)
    given = None if predictions is None else Path(predictions)
    found = find_suspects(version, view, column, state, given, seed)
    if output is not None:
        lines = (
            {"_row": one.row, "label": one.label, "likelier": one.likelier, "probability": one.probability}
            for one in found.suspects
        )
        write_text(Path(output), "".join(encode_json(line, ensure_ascii=False) + "\n" for line in lines))
    return found
