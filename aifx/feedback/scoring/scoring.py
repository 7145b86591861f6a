"""Scoring: the rows of a source that a target has no predictions of, a commit of the target at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from aifx.core.errors import UsageError
from aifx.core.json_values import plain
from aifx.core.progress import report_progress
from aifx.core.requests import Request
from aifx.core.results import Result
from aifx.data.readers.rows import Row
from aifx.feedback.scoring.predictions import KeyedRow, keyed, prediction_batch
from aifx.feedback.scoring.sources import Source
from aifx.feedback.scoring.targets import Target, scoring_of
from aifx.loading.prediction import LoadedModel, predict_rows

COMMIT_ROWS = 1 << 14
"""Predictions of a commit: what a kill can make aifx compute again."""

LOOK_ROWS = 1 << 13
"""Rows whose ids are looked for in the target at a time."""


@dataclass(frozen=True)
class Scored(Result):
    """The document of `aifx score --json`.

    Attributes:
        model: the run or the version's label.
        digest: of the model version, or of a run's checkpoint: `model` of each prediction.
        source: without login.
        target: without login.
        rows: that were read.
        scored: predictions that were added, also by calls before that were interrupted, if it is a request.
        known: rows whose predictions were there.
        position: up to which the source was scored, from which `--since-last` goes on; null without one.
        request: the id of the request.
        is_repeated: whether an earlier call with the same id did it, and this is what that call reported.
    """

    model: str
    step: int
    digest: str
    source: str
    target: str
    rows: int
    scored: int
    known: int
    position: Any = None
    request: str | None = None
    is_repeated: bool = False


def score(
    model: LoadedModel, digest: str, source: Source, target: Target, name: str, request: Request | None
) -> Scored:
    """Add predictions of the rows that the target has none of, and keep the position and the request.

    Args:
        digest: of the model version.
        name: of the target.

    Raises DataError for rows that cannot be used: before anything is written if the model lacks a column or a key is
    not unique.
    """
    if model.trained.config.task.kind == "series":
        why = "a forecast is of many rows, and has no row of its own"
        raise UsageError("series cannot be scored", why, f"aifx predict {source.name} --output forecast.parquet")
    total = source.check(model.format)
    id, scoring = None if request is None else request.id, scoring_of(digest, source.name, source.key)
    begun = target.begun(request) if request is not None else None
    scored, known, waiting = (begun or {}).get("scored", 0), 0, deque[KeyedRow]()
    with report_progress(f"scoring {source.name}", total, "rows") as progress:

        def fresh() -> Iterator[Row]:
            nonlocal known
            rows = source.rows(model.format)
            while chunk := [keyed(row, source.key, digest) for row in islice(rows, LOOK_ROWS)]:
                there = target.known([one.id for one in chunk])
                known += len(there)
                progress.advance(len(there))
                new = [one for one in chunk if one.id not in there]
                waiting.extend(new)
                yield from (one.row for one in new)

        schema = None
        predictions = ((waiting.popleft(), found) for _, found in predict_rows(model.trained, fresh()))
        while commit := list(islice(predictions, COMMIT_ROWS)):
            batch = prediction_batch(commit, digest, id, datetime.now(UTC), schema)
            schema, position = batch.schema, source.position_of(commit[-1][0].row)
            added = target.add(batch, scoring, position, request, digest)
            scored, known = scored + added, known + len(batch) - added
            progress.advance(len(batch))
    done = Scored(model.run, model.step, digest, source.name, name, total, scored, known, source.end, id)
    target.finish(scoring, source.end, request, plain(done))
    return done
