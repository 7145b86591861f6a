"""Rows of which a model is least certain, from its predictions."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aifx.core.errors import DataError, UsageError
from aifx.core.parsing import parse_json
from aifx.core.plurals import counted
from aifx.core.project import RUN_NAME, find_project
from aifx.curation.labels.contents import Shown
from aifx.curation.labels.queue import no_rows, unlabelled_rows
from aifx.data.names import CHAT, ROW
from aifx.data.readers.rows import input_file, read_rows
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import read_shard
from aifx.data.versions.sql import RowTable, open_tables

logger = logging.getLogger(__name__)


def least_certain(
    version: Version, shown: Shown, column: str, given: str, count: int, *, relabel: bool = False
) -> list[str]:
    """Ids of the rows without a label of which a model is least certain, the least certain first.

    Args:
        given: a run of the project, otherwise a file that `aifx predict` wrote for the version's shards.

    Raises UsageError, DataError.
    """
    with open_tables({"data": RowTable(version)}) as connection:
        sql = f"SELECT {ROW} FROM ({unlabelled_rows(version, column, relabel=relabel)})"
        wanted = {row for (row,) in connection.execute(sql).fetchall()}
    if not wanted:
        raise no_rows(version, column)
    found: Iterator[tuple[str, float]]
    if Path(given).suffix and not _is_run(given):
        predicted = read_predictions(version, Path(given))
        found = ((row, _certainty(values, place)) for row, place, values in predicted)
    else:
        found = _predict(version, shown, given)
    certain = {row: certainty for row, certainty in found if row in wanted}
    if not certain:
        what = f"{given} predicts no row of {version.reference} that has no label"
        why = f"{counted(len(wanted), 'row')} without a label have other ids"
        raise UsageError(what, why, f"aifx predict {version.path}/shards/*.parquet --output predictions.jsonl")
    if len(certain) < len(wanted):
        logger.warning(
            f"{given} predicts {len(certain):,} of the {counted(len(wanted), 'row')}; the others are left out"
        )
    return heapq.nsmallest(count, certain, key=lambda row: (certain[row], row))


def certainty_of(prediction: Mapping[str, Any]) -> float | None:
    """The certainty of a prediction: the probability of the likeliest class; of several yes-or-no answers that of the
    least certain; of a text minus its loss. None if it has none of them."""
    probabilities = next((value for name, value in prediction.items() if name.endswith("probabilities")), None)
    if not isinstance(probabilities, Mapping):  # a table has a column for each class
        probabilities = {name: value for name, value in prediction.items() if "probabilities." in name}
    values = [float(value) for value in probabilities.values() if value not in (None, "")]
    if values and "labels" in prediction:
        return min(max(value, 1 - value) for value in values)
    if values:
        return max(values)
    for name, sign in (("probability", 1), ("prediction.probability", 1), ("loss", -1)):
        if prediction.get(name) not in (None, ""):
            return sign * float(prediction[name])
    return None


def read_predictions(version: Version, path: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The row, the place and the fields of each prediction in a file of `aifx predict`.

    Its row is that of the field `_row`, otherwise that of the shard and the number in it. Raises DataError.
    """
    rows_of: dict[str, list[str]] = {}
    shards = {f"{version.path.name}/{file.name}": version.path / file.name for file in version.manifest.shards}
    for record in read_rows(input_file(str(path))):
        values = record.values
        row = values.get(ROW)
        if row is None:
            name = "/".join(Path(str(values.get("file"))).parts[-3:])
            if name not in shards:
                what = f"{record.place} is no prediction for a row of {version.reference}"
                why = f"it has no {ROW}, and its file is {values.get('file')!r} instead of a shard of the version"
                raise DataError(what, why, f"aifx predict {version.path}/shards/*.parquet --output {path}")
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


def _predict(version: Version, shown: Shown, run: str) -> Iterator[tuple[str, float]]:
    """The certainty of a run of the project for each row."""
    from aifx.loading.model import LoadedModel
    from aifx.loading.restore import restore_run

    project = find_project()
    model = LoadedModel(restore_run(project.existing_run(run), project))
    text_field = getattr(model.trained.config.data, "text_field", "text")
    ids: list[str] = []

    def rows() -> Iterator[Mapping[str, Any]]:
        for shard in version.shards:
            for record in read_shard(shard, [ROW, *shown.columns]).to_pylist():
                row = record.pop(ROW)
                try:
                    values = model.decode(record["image"]) if shown.kind == "images" else record
                    values = parse_json(record[CHAT]) if shown.kind == "chat" else values
                except ValueError as e:
                    logger.warning(f"row {row} is left out: {e}")
                    continue
                ids.append(row)
                yield {text_field: values["text"]} if shown.kind == "text" else values

    for number, prediction in enumerate(model.predict(rows())):
        yield ids[number], _certainty(prediction, f"run {run}, row {ids[number]}")
