"""The rows that are labelled: what labellers see of them, which rows, in which order, and by whom."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from aifx.core.errors import DataError, UsageError
from aifx.core.parsing import parse_json
from aifx.core.plurals import counted
from aifx.core.project import RUN_NAME, find_project
from aifx.curation.labels.store import Entry, LabelKind, LabelState
from aifx.data.chat.lines import messages_of
from aifx.data.names import CHAT, RESERVED, ROW, SOURCE
from aifx.data.readers.rows import input_file, read_rows
from aifx.data.versions.manifest import TEXT_TYPES, Version
from aifx.data.versions.shards import read_shard, records_of
from aifx.data.versions.sql import RowTable, identifier, open_tables

logger = logging.getLogger(__name__)

IMAGE_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
}
"""Media types by the beginning of a file."""


@dataclass(frozen=True)
class View:
    """The columns of a row that labellers see.

    Attributes:
        columns: one for texts, images and chats, two for pairs, in the order of the command line.
        context: further columns of a pair, such as the question that both texts answer.
    """

    kind: LabelKind
    columns: tuple[str, ...]
    context: tuple[str, ...] = ()


def view_of(version: Version, column: str, pair: str | None = None) -> View:
    """The columns to show of a version whose labels become `column`.

    Args:
        pair: two columns with texts, as "A,B", of which labellers choose the better.

    Raises UsageError for columns that the version does not have.
    """
    manifest = version.manifest
    if pair is not None:
        names = tuple(name.strip() for name in pair.split(","))
        known = [name for name, kind in manifest.columns.items() if kind in TEXT_TYPES]
        if len(set(names)) != 2 or not set(names) <= set(known):
            why = f"{version.reference} has the texts {', '.join(name for name in known if name not in RESERVED)}"
            raise UsageError(
                f"--pair {pair} names no two columns of text", why, f"aifx data profile {version.reference}"
            )
        others = (name for name in known if name not in (*names, *RESERVED, column))
        return View("pairs", names, tuple(others))
    if manifest.kind != "table":
        return View(manifest.kind, ({"text": "text", "images": "image", "chat": CHAT}[manifest.kind],))
    columns = tuple(name for name in manifest.columns if name not in RESERVED and name != column)
    if not columns:
        what = f"{version.reference} has no column to show"
        raise UsageError(what, f"a mix has none, and {column} is left out", "label the data sets that it mixes")
    return View("table", columns)


class VisibleRow(NamedTuple):
    """A row as labellers see it.

    Attributes:
        content: the shown columns; of a chat, its messages as people read them.
    """

    row: str
    source: str
    content: Mapping[str, Any]


def visible_rows(version: Version, view: View, rows: Collection[str] | None = None) -> Iterator[VisibleRow]:
    """The rows with these ids, by default all, in the order of the version."""
    own = [name for name in (ROW, SOURCE) if name in version.manifest.columns]
    columns = [*view.columns, *view.context]
    wanted = None if rows is None else pa.array(list(rows), pa.string())
    for shard in version.shards:
        table = read_shard(shard, [*own, *columns])
        for record in records_of(table if wanted is None else table.filter(pc.is_in(table[ROW], value_set=wanted))):
            if CHAT in columns and view.kind == "chat":
                record[CHAT] = "\n\n".join(messages_of(record[CHAT]))
            yield VisibleRow(record[ROW], record.get(SOURCE) or "", {name: record[name] for name in columns})


def has_row(version: Version, row: str) -> bool:
    """Whether a version has a row of this id."""
    try:
        return any(read_shard(shard, [ROW])[ROW].index(row).as_py() >= 0 for shard in version.shards)
    except UnicodeEncodeError:  # a lone surrogate, which no id has
        return False


def image_type(data: bytes) -> str:
    """The media type of an image file."""
    known = (kind for beginning, kind in IMAGE_TYPES.items() if data.startswith(beginning))
    return next(known, "application/octet-stream")


LEASE_S = 600.0
"""Time for which a row is kept for the labeller who received it."""


def sample_rows(version: Version, column: str, count: int, seed: int, *, relabel: bool = False) -> list[str]:
    """Ids of a random sample of the rows without a label in the version: the same for the same seed."""
    return _unlabelled(version, column, f"ORDER BY md5({ROW} || '-{seed}'), {ROW} LIMIT {count}", relabel=relabel)


def _unlabelled(version: Version, column: str, order: str, *, relabel: bool) -> list[str]:
    """Ids of the rows of a version that have no value in the column. Raises UsageError if there is none."""
    is_free = "true" if relabel or column not in version.manifest.columns else f"{identifier(column)} IS NULL"
    with open_tables({"data": RowTable(version)}) as connection:
        found = connection.execute(f"SELECT {ROW} FROM data WHERE {is_free} {order}").fetchall()
    if found:
        return [row for (row,) in found]
    if not version.manifest.rows:
        raise UsageError(f"{version.reference} has no rows", "there is nothing to label", "aifx data ls")
    what, why = f"all rows of {version.reference} have a value in column {column}", "only rows without one are labelled"
    raise UsageError(what, why, "--relabel shows them too; --column NAME asks another question")


def least_certain(
    version: Version, view: View, column: str, given: str, count: int, *, relabel: bool = False
) -> list[str]:
    """Ids of the rows without a label of which a model is least certain, the least certain first.

    Args:
        given: a run of the project, otherwise a file that `aifx predict` wrote for the version's shards.

    Raises UsageError, DataError.
    """
    wanted = set(_unlabelled(version, column, "", relabel=relabel))
    found: Iterator[tuple[str, float]]
    if Path(given).suffix and not _is_run(given):
        predicted = read_predictions(version, Path(given))
        found = ((row, _certainty(values, place)) for row, place, values in predicted)
    else:
        found = _predict(version, view, given)
    certain = {row: certainty for row, certainty in found if row in wanted}
    if not certain:
        what = f"{given} predicts no row of {version.reference} that has no label"
        why = f"{counted(len(wanted), 'row')} without a label have other ids"
        raise UsageError(what, why, f"aifx predict {globs_of(version)} --output predictions.jsonl")
    if len(certain) < len(wanted):
        logger.warning(
            f"{given} predicts {len(certain):,} of the {counted(len(wanted), 'row')}; the others are left out"
        )
    return heapq.nsmallest(count, certain, key=lambda row: (certain[row], row))


def probabilities_of(prediction: Mapping[str, Any]) -> Mapping[str, Any]:
    """The probability of each class in a prediction: a table has a column for each. Empty if it has none."""
    found = next((value for name, value in prediction.items() if name.endswith("probabilities")), None)
    if isinstance(found, Mapping):
        return found
    names = ((name.partition("probabilities.")[2], value) for name, value in prediction.items())
    return {name: value for name, value in names if name}


def certainty_of(prediction: Mapping[str, Any]) -> float | None:
    """The certainty of a prediction: the probability of the likeliest class; of several yes-or-no answers that of the
    least certain; of a text minus its loss. None if it has none of them."""
    values = [float(value) for value in probabilities_of(prediction).values() if value not in (None, "")]
    if values and "labels" in prediction:
        return min(max(value, 1 - value) for value in values)
    if values:
        return max(values)
    for name, sign in (("probability", 1), ("prediction.probability", 1), ("loss", -1)):
        if prediction.get(name) not in (None, ""):
            return sign * float(prediction[name])
    return None


def globs_of(version: Version) -> str:
    """The shards of a version for a command line: patterns of all folders that hold some."""
    return " ".join(f"{folder}/*.parquet" for folder in dict.fromkeys(path.parent for path in version.shards))


def read_predictions(version: Version, path: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The row, the place and the fields of each prediction in a file of `aifx predict`.

    Its row is that of the field `_row`, otherwise that of the shard and the number in it. Raises DataError.
    """
    rows_of: dict[str, list[str]] = {}
    shards = {"/".join(path.parts[-3:]): path for path in version.shards}
    for record in read_rows(input_file(str(path))):
        values = record.values
        row = values.get(ROW)
        if row is None:
            name = "/".join(Path(str(values.get("file"))).parts[-3:])
            if name not in shards:
                what = f"{record.place} is no prediction for a row of {version.reference}"
                why = f"it has no {ROW}, and its file is {values.get('file')!r} instead of a shard of the version"
                raise DataError(what, why, f"aifx predict {globs_of(version)} --output {path}")
            if name not in rows_of:
                rows_of[name] = read_shard(shards[name], [ROW])[ROW].to_pylist()
            number = str(values.get("row"))
            if not number.isdecimal() or not 0 < int(number) <= len(rows_of[name]):
                why = f"{name} has the rows 1 to {len(rows_of[name]):,}"
                raise DataError(f"{record.place}: no row {number}", why, "predict the version again")
            row = rows_of[name][int(number) - 1]
        yield str(row), record.place, values


def _certainty(prediction: Mapping[str, Any], place: str) -> float:
    try:
        found = certainty_of(prediction)
    except (TypeError, ValueError) as e:
        raise DataError(
            f"{place} has a certainty that is no number", str(e), "aifx predict writes such files"
        ) from None
    if found is None:
        why = "it has neither probabilities nor a loss"
        raise DataError(f"{place} does not show how certain the model is", why, "predict classes, or score texts")
    return found


def _is_run(name: str) -> bool:
    try:
        project = find_project()
    except UsageError:
        return False
    return RUN_NAME.fullmatch(name) is not None and project.run(name).exists()


def _predict(version: Version, view: View, run: str) -> Iterator[tuple[str, float]]:
    """The certainty of a run of the project for each row."""
    from aifx.loading.prediction import LoadedModel
    from aifx.loading.restore import restore_run

    project = find_project()
    model = LoadedModel(restore_run(project.existing_run(run), project))
    text_field = getattr(model.trained.config.data, "text_field", "text")
    ids: list[str] = []

    def rows() -> Iterator[Mapping[str, Any]]:
        for shard in version.shards:
            for record in read_shard(shard, [ROW, *view.columns]).to_pylist():
                row = record.pop(ROW)
                try:
                    values = model.decode(record["image"]) if view.kind == "images" else record
                    values = parse_json(record[CHAT]) if view.kind == "chat" else values
                except ValueError as e:
                    logger.warning(f"row {row} is left out: {e}")
                    continue
                ids.append(row)
                yield {text_field: values["text"]} if view.kind == "text" else values

    for number, prediction in enumerate(model.predict(rows())):
        yield ids[number], _certainty(prediction, f"run {run}, row {ids[number]}")


def queued_rows(version: Version, view: View, rows: Sequence[str]) -> list[VisibleRow]:
    """The rows with these ids, in their order."""
    found = {row.row: row for row in visible_rows(version, view, rows)}
    return [found[row] for row in rows]


class LabelQueue:
    """Gives rows to labellers, each to as many as there are labels to collect.

    Args:
        overlap: labels per row, each by another labeller.
    """

    def __init__(self, rows: Iterable[VisibleRow], state: LabelState, overlap: int = 1) -> None:
        self.rows = {row.row: row for row in rows}
        self.overlap = overlap
        self._state = state
        self._leases: dict[str, dict[str, float]] = {}  # the ends, by labeller, by row

    def take(self, labeller: str, count: int) -> list[VisibleRow]:
        """Rows for a labeller: first those that they have got already."""
        now = time.monotonic()
        leased, free = [], []
        for row in self.rows:
            of_row = self._state.by_row.get(row, {})
            if labeller in of_row or self._count(of_row.values()) >= self.overlap:
                continue
            others = {one: end for one, end in self._leases.get(row, {}).items() if end > now and one not in of_row}
            if labeller in others:
                leased.append(row)
            elif self._count(of_row.values()) + len(others) < self.overlap:
                free.append(row)
            if len(leased) >= count:
                break
        taken = [*leased, *free][:count]
        for row in taken:
            self._leases.setdefault(row, {})[labeller] = now + LEASE_S
        return [self.rows[row] for row in taken]

    @staticmethod
    def _count(entries: Iterable[Entry]) -> int:
        """Labels: a row that somebody skipped is left to others."""
        return sum(entry.label is not None for entry in entries)

    def progress(self, labeller: str, most: int) -> dict[str, Any]:
        """The progress of the labelling, for the page.

        It counts the rows of the queue, those that have as many labels as asked for, and those that a labeller labelled
        or skipped. Of these, the ids of the last `most` follow, the latest last.
        """
        states = [self._state.by_row.get(row, {}) for row in self.rows]
        own = [of_row[labeller] for of_row in states if labeller in of_row]
        done, labelled = sum(self._count(of_row.values()) >= self.overlap for of_row in states), self._count(own)
        counts = {"rows": len(states), "done": done, "labelled": labelled, "skipped": len(own) - labelled}
        own.sort(key=lambda entry: self._state.ids[entry.id])
        return {"progress": counts, "history": [entry.row for entry in own[-most:]]}
