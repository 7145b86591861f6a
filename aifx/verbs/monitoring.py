"""Rows of now beside those that a model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import UsageError
from aifx.core.files import write_output
from aifx.core.project import Project, RunDirectory
from aifx.data.names import SPLIT
from aifx.data.readers.formats import IMAGE
from aifx.data.sections import ImagesSection, TableSection
from aifx.verbs.arguments import Settings, Step, StrPath
from aifx.verbs.catalogs import row_files
from aifx.verbs.prediction import load

if TYPE_CHECKING:
    from aifx.data.base import DataFormat
    from aifx.data.readers.rows import Row
    from aifx.data.readers.sources import SourceFile
    from aifx.feedback.monitoring import Monitored, MonitoredRows
    from aifx.loading.prediction import LoadedModel

HELD_OUT = ("validation", "test")

TRAINING = "training"
"""What rows are compared with by default."""


def monitor(
    model: StrPath,
    *sources: str,
    against: str = TRAINING,
    time: str | None = None,
    window: str | None = None,
    limits: Sequence[str] = (),
    html: StrPath | None = None,
    prometheus: StrPath | None = None,
    step: Step = None,
    settings: Settings = None,
    trust_code: str | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> Monitored:
    """Compare rows, and a model's predictions for them, with those that it was trained on.

    The verdict is bad if a column drifted: its effect counts, and is larger than chance makes any column's. Also if a
    metric's whole interval is outside a gate of `eval.gates` or a limit.

    Rows with the model's target have outcomes: metrics of the predictions are measured by them. Without, the accuracy
    of a classifier is estimated from its confidences.

    Args:
        model: the run's folder, or a model version: "fraud@production".
        sources: files of rows, or versions of data sets.
        against: "training", a file of rows or a version of a data set.
        time: the column with the time of a row; by default `monitor.time`. Rows are compared with those of the same
            part of the week.
        window: how old a row may be, such as "7d".
        limits: the effect that a column may have, as "amount <= 0.2", and limits of metrics, as "outcome.accuracy >=
            0.9" or "estimate.accuracy >= 0.9"; over those of `monitor.limits`.
        html: a web page to write.
        prometheus: a file of metrics to write, for the textfile collector of node_exporter.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        settings: values over those of the run's configuration, by key.
        trust_code: digest of a model version whose own code may run.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.monitor("runs/main", "texts/moby.txt", against="texts/moby.txt")  # one row
        Traceback (most recent call last):
        ...
        aifx.core.errors.DataError: ...
    """
    from aifx.feedback.monitoring import MonitoredRows
    from aifx.feedback.monitoring import monitor as compare
    from aifx.lines.reports import leave_monitor_report
    from aifx.lines.schedule import parse_duration

    try:
        age = timedelta(seconds=parse_duration(window)) if window is not None else None
    except ValueError as e:
        raise UsageError(f"--window {window}", str(e), "--window 7d") from None
    found = [row_files(name, "aifx monitor", root, project) for name in sources]
    named = row_files(against, "aifx monitor --against", root, project) if against != TRAINING else None
    loaded = load(model, step=step, settings=settings, trust_code=trust_code)
    form, section = loaded.format, loaded.trained.config.monitor
    files = list(chain.from_iterable(one.files for one in found))
    now = MonitoredRows(", ".join(one.name for one in found), partial(_rows, form, files))
    if named is not None:
        reference = unseen = MonitoredRows(named.name, partial(_rows, form, named.files))
    else:
        reference, unseen = _training_rows(loaded, root, project)
    report = compare(
        loaded,
        now,
        reference,
        unseen,
        shown=section.shown,
        limits=(*section.limits, *limits),
        time=time if time is not None else section.time,
        window=age,
    )
    if html is not None:
        from aifx.feedback.monitor_output import monitor_page

        write_output(Path(html), monitor_page(report).encode())
    if prometheus is not None:
        from aifx.feedback.monitor_output import monitor_metrics

        write_output(Path(prometheus), monitor_metrics(report).encode())
    leave_monitor_report(report.document(), loaded.trained.project.root)
    return report


def _rows(form: DataFormat, files: Iterable[SourceFile]) -> Iterator[Row]:
    return chain.from_iterable(form.read_rows(file) for file in files)


def _training_rows(model: LoadedModel, root: str | None, project: StrPath) -> tuple[MonitoredRows, MonitoredRows]:
    """The rows that a model was trained on, and those that were held out. Raises UsageError if they are not known."""
    trained, form = model.trained, model.format
    if (reference := _training_version(trained.run)) is not None:
        found = row_files(reference, "aifx monitor --against", root, project)
        return _by_split(found.name, partial(_rows, form, found.files))
    section = trained.config.data
    named = section.named_files(trained.project) if trained.run.model_digest is None else {}
    files = named.get("data.path") or [file for key in HELD_OUT for file in named.get(f"data.{key}", ())]
    train = named.get("data.path") or named.get("data.train")
    if not train:
        what = f"the rows that {trained.run.title} was trained on are not known"
        raise UsageError(what, "it was not trained on a version of a data set", "--against FILE or NAME@VERSION")
    name = ", ".join(file.name for file in train)
    if "data.path" in named and isinstance(section, TableSection):
        return _by_split(name, partial(_rows_with_splits, form, section, trained.project, train))
    if isinstance(section, ImagesSection):
        return _by_split(name, partial(_pictures, model, section, name))
    from aifx.feedback.monitoring import MonitoredRows

    held_out = files if "data.path" not in named else []
    return MonitoredRows(name, partial(_rows, form, train)), MonitoredRows(name, partial(_rows, form, held_out))


def _by_split(name: str, read: Callable[[], Iterator[Row]]) -> tuple[MonitoredRows, MonitoredRows]:
    from aifx.feedback.monitoring import MonitoredRows

    return MonitoredRows(name, read, ("train",)), MonitoredRows(name, read, HELD_OUT)


def _rows_with_splits(
    form: DataFormat, section: TableSection, project: Project, files: Iterable[SourceFile]
) -> Iterator[Row]:
    """The rows of a table, each with its split."""
    from aifx.data.table import read_splits

    table, splits = read_splits(section, project)
    split_of = {int(number): split for split, rows in splits.items() for number in table.numbers[rows]}
    for number, row in enumerate(_rows(form, files)):
        if number in split_of:
            yield replace(row, values={**row.values, SPLIT: split_of[number]})


def _pictures(model: LoadedModel, section: ImagesSection, name: str) -> Iterator[Row]:
    """The pictures of `[data]` as training reads them, each with its split."""
    from aifx.data.images import ImageFormat
    from aifx.data.readers.rows import Row

    trained, form = model.trained, model.format
    project = trained.config.apply_to(trained.project)
    _, data = ImageFormat.open(section, project, trained.run.assets)
    for split, arrays in data.splits.items():
        for number, target in enumerate(arrays["targets"]):
            values = {IMAGE: arrays["inputs"][[number]][0], SPLIT: split}
            if form.outcome_column:
                classes, spec = data.spec.classes, data.spec
                outcome = classes[target] if classes else float(target * spec.target_scale + spec.target_mean)
                values[form.outcome_column] = outcome
            yield Row(name, number + 1, f"{name}: picture {number + 1} of {split}", values)


def _training_version(run: RunDirectory) -> str | None:
    from aifx.registry.versions import ModelDirectory
    from aifx.runs.provenance import read_provenance

    if isinstance(run, ModelDirectory):
        versions = (run.content.data or {}).get("versions") or ()
        return str(versions[0]) if versions else None
    reference = (read_provenance(run).get("dataset") or {}).get("reference")
    return str(reference) if reference else None
