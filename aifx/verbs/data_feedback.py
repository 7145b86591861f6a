"""Predictions joined with their outcomes, as a version to train on."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from aifx.core.artifact import short_reference
from aifx.core.errors import UsageError, did_you_mean
from aifx.core.redaction import redact
from aifx.core.requests import RequestDone, find_request
from aifx.curation.execution import made_version
from aifx.verbs.arguments import StrPath
from aifx.verbs.catalogs import StepOptions, StepPlace, licensing_project, open_place, row_files
from aifx.verbs.data_steps import CombinedVersion

if TYPE_CHECKING:
    from aifx.curation.execution import Made
    from aifx.data.versions.manifest import Version
    from aifx.feedback.outcomes.inputs import Choose, Input, Predictions


@dataclass(frozen=True)
class FeedbackVersion(CombinedVersion):
    """The document of `aifx data feedback --json`.

    Attributes:
        dropped: scored rows without an outcome, or with outcomes that contradict each other.
        dropped_by: the same by rule: "missing" and "conflict".
        facts: what is known about the outcomes: docs/data-feedback.md.
        license_conflicts: among the sources of its parents.
        request: the id of the request.
        is_repeated: whether an earlier call with the same id did it, and this is what that call reported.
    """

    request: str | None = None
    is_repeated: bool = False


def data_feedback(
    name: str,
    *,
    predictions: StrPath,
    outcomes: StrPath,
    key: str,
    time: str | None = None,
    label: str | None = None,
    zone: str | None = None,
    query: str | None = None,
    rows: str | None = None,
    rows_key: str | None = None,
    license: str = "unknown",
    request: str | None = None,
    **options: Unpack[StepOptions],
) -> FeedbackVersion:
    """Make a version of the rows whose predictions have an outcome, with it, to train on.

    An outcome belongs to the newest prediction of its key that is not later, or to the one whose id it has. Rows
    without an outcome, and with outcomes that contradict each other, are left out and counted.

    Args:
        name: data set to make or to extend; not that of the rows.
        predictions: what `score` wrote: a folder, or a table as "postgresql://HOST/DATABASE/TABLE"; or the folder of
            a run with the records of its servers, "runs/main/records".
        outcomes: a file of rows, a version of a data set, or a table. With `query`, the database alone.
        key: column of the outcomes with the key of their row, which the rows have, too; or "prediction_id".
        time: column with the time at which the outcome was known. It is needed unless `key` is "prediction_id".
        label: column with the outcome, which the version has under this name; by default the only other one.
        zone: of times that have none, such as "Europe/Berlin". A date is known at its end.
        query: SQL whose rows are the outcomes.
        rows: data set with the rows that were scored; by default what the predictions say.
        rows_key: column of the rows by which they were scored; by default what the predictions say.
        license: of outcomes that are in no data set: an SPDX expression, or "unknown".
        request: an id: a second call with it reports what the first one did, whatever the name means since.

    Example:
        >>> aifx.data_feedback("judged", predictions="nothing", outcomes="orders.csv", key="product", time="time")
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.data.versions.catalog import check_dataset_name, check_own_rows
    from aifx.data.versions.licenses import check_allowed, check_licenses
    from aifx.data.versions.manifest import check_license
    from aifx.data.versions.requests import check_request
    from aifx.feedback.outcomes.step import Feedback
    from aifx.feedback.scoring.predictions import ID

    check_dataset_name(name)
    expression = check_license(license)
    if time is None and key != ID:
        why = "an outcome belongs to the newest prediction of its key that is not later"
        raise UsageError("--time is missing", why, f"--time COLUMN of the outcomes, or --key {ID}")
    place = open_place(**options)
    how = {"query": query, "key": key, "time": time, "label": label, "zone": zone, "rows": rows, "rows-key": rows_key}
    given = "".join(f" --{option} {value}" for option, value in how.items() if value is not None)
    asked = find_request(request, redact(f"data feedback {name} {predictions} {outcomes}{given}"))
    try:
        if asked is not None:
            check_request(place.catalog.store.below(name), asked)
        with tempfile.TemporaryDirectory(prefix="aifx-feedback-") as folder:
            of_rows = rows_key if rows_key is not None else None if key == ID else key
            found = _predictions(predictions, of_rows, Path(folder, "predictions"))
            version = _rows(place, found, rows)
            check_own_rows(version.manifest, "aifx data feedback --rows")
            if version.manifest.name == name:
                why = f"{version.reference} has the rows that were scored, and more come"
                raise UsageError(f"{name} cannot be made of itself", why, f"aifx data feedback {name}-outcomes")
            columns = version.manifest.columns
            by = _rows_key(rows_key, found, key, version)
            given_by = _Chosen(key, time, label)
            known = _outcomes(place, outcomes, query, given_by.columns, Path(folder, "outcomes"), options)
            if key not in columns and key not in (ID, by):
                what = f"{version.reference} has no column {key!r}, nor were its rows scored by it"
                raise UsageError(what, did_you_mean(key, columns), f"--key COLUMN that it and {known.name} have")
            chosen = given_by.label_of(list(known.version.manifest.columns), known.name)
            parents = (version, *(one.version for one in (found, known) if one.is_stored))
            project = licensing_project(place.project, options.get("project", "."))
            if project is not None and project.license_allow and not known.is_stored:
                check_allowed({expression: [known.name]}, project)
            conflicts = check_licenses([parent.manifest for parent in parents], place.catalog, project, name)
            now = datetime.now(UTC)
            step = Feedback(parents, found, known, key, by, time, zone, chosen, expression, now)

            def outcome(made: Made) -> FeedbackVersion:
                document = vars(made_version(made))
                return FeedbackVersion(**document, license_conflicts=conflicts, request=asked.id if asked else None)

            return outcome(place.execute(step, name, asked=None if asked is None else (asked, outcome)))
    except RequestDone as done:
        return done.repeated(FeedbackVersion)


def _predictions(name: StrPath, key: str | None, folder: Path) -> Predictions:
    """Predictions. Those that a server recorded have the key in a column of their rows."""
    from aifx.feedback.outcomes.inputs import read_prediction_folder, read_prediction_records, read_prediction_table
    from aifx.serving.records import CHAIN

    folder.mkdir()
    if "://" in str(name):
        return read_prediction_table(str(name), folder)
    if any(Path(name).rglob(f"*{CHAIN}")):
        if key is None:
            why = (
                f"records of aifx serve have the rows that clients sent, and {name} does not say what tells them apart"
            )
            raise UsageError("--rows-key is missing", why, "--rows-key COLUMN of these rows, and of --rows")
        return read_prediction_records(Path(name), key, folder)
    return read_prediction_folder(Path(name), folder)


def _outcomes(
    place: StepPlace, name: StrPath, query: str | None, choose: Choose, folder: Path, options: StepOptions
) -> Input:
    """The outcomes of a database, of a version or of a file."""
    from aifx.data.readers.sources import list_sources
    from aifx.feedback.outcomes.inputs import Input, read_database, read_file
    from aifx.feedback.scoring.connections import is_database
    from aifx.feedback.scoring.database_source import select

    folder.mkdir()
    if is_database(str(name)):
        return read_database(select(str(name), "", query, None, False), choose, folder)
    if query is not None:
        raise UsageError("--query is for databases", f"{name} is none", "--outcomes postgresql://HOST/DATABASE")
    found = row_files(str(name), "aifx data feedback", options.get("root"), options.get("project", "."))
    if not found.is_version:
        files = list_sources([str(name)], Path.cwd()).files
        if len(files) != 1:
            hint = "name one file, or aifx data add makes a data set of them"
            raise UsageError(f"{name} is not one file", f"it names {len(files)}", hint)
        return read_file(files[0], choose, folder)
    version = place.open(found.name)
    choose(list(version.manifest.columns))
    return Input(version.reference, version, is_stored=True)


def _rows(place: StepPlace, predictions: Predictions, rows: str | None) -> Version:
    """The version with the rows that were scored. Raises UsageError if it is not known."""
    if rows is not None:
        return place.open(rows)
    names = dict.fromkeys(source.partition("@")[0] for source, _ in predictions.scored)
    stored = [name for name in names if name in place.catalog.names()]
    if len(stored) != 1 or len(names) != 1:
        scored = ", ".join(short_reference(source) for source, _ in predictions.scored)
        why = f"they are of {scored or 'rows that it does not name'}"
        hint = "--rows NAME of the data set with these rows; aifx data add makes one of files or of a query"
        raise UsageError(f"the rows of the predictions in {predictions.name} are in no data set", why, hint)
    return place.open(stored[0])


def _rows_key(rows_key: str | None, predictions: Predictions, key: str, version: Version) -> str:
    """The column of the rows with the keys of the predictions. Raises UsageError."""
    from aifx.data.names import ROW

    columns = version.manifest.columns
    scored = list(dict.fromkeys(column for _, column in predictions.scored))
    if rows_key is None and len(scored) > 1:
        why = f"rows were scored by {' and '.join(map(repr, scored))}"
        raise UsageError(f"{predictions.name} has keys of several columns", why, f"--rows-key {scored[0]}")
    found = rows_key or next(iter(scored), key if key in columns else ROW)
    if found not in columns:
        what = f"{version.reference} has no column {found!r}, by which the rows were scored"
        raise UsageError(what, did_you_mean(found, columns), "--rows NAME, --rows-key COLUMN")
    return found


class _Chosen:
    """The columns of the outcomes that are read."""

    def __init__(self, key: str, time: str | None, label: str | None) -> None:
        self._given = {"--key": key, "--time": time, "--label": label}

    def columns(self, names: Sequence[str]) -> list[str]:
        """Those that are given, and the label. Raises UsageError for one that is not there."""
        for option, name in self._given.items():
            if name is not None and name not in names:
                what = f"the outcomes have no column {name!r}"
                raise UsageError(what, did_you_mean(name, names), f"{option} COLUMN, one of {', '.join(names)}")
        given = [name for name in self._given.values() if name is not None]
        return list(dict.fromkeys([*given, self.label_of(names, "the outcomes")]))

    def label_of(self, names: Sequence[str], where: str) -> str:
        """The column with the outcome. Raises UsageError if it is not clear."""
        from aifx.data.names import RESERVED

        if (label := self._given["--label"]) is not None:
            return label
        others = [name for name in names if name not in (*self._given.values(), *RESERVED)]
        if len(others) != 1:
            why = f"{where} have {', '.join(others)}" if others else "no other column is there"
            raise UsageError("--label is missing: the column with the outcome", why, "--label COLUMN")
        return others[0]
