"""A model of the project as a filter: a score for each row, and the rows with the best scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import Table

from aifx.core.digests import sha256_of_json
from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.json_values import plain
from aifx.core.parsing import parse_json
from aifx.core.progress import report_progress
from aifx.core.project import RunDirectory, open_run
from aifx.core.steps import StepChoice
from aifx.curation.step import DecidedStep, Limits, Outcome, set_column, without, write_decisions
from aifx.data.names import CHAT, RESERVED, ROW
from aifx.data.readers.rows import Row
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import read_parts, records_of
from aifx.data.versions.sql import same_in_sql

if TYPE_CHECKING:
    from aifx.loading.prediction import LoadedModel

SCORE = "score"
"""The rule of a row whose score is too small, and its column in `dropped/`."""


@dataclass(frozen=True)
class Model:
    """The checkpoint of a run that gives scores.

    Attributes:
        folder: of the run.
        sha256: of its arrays, and of all else that the checkpoint names: settings, tokenizer, base run.
        label: class whose probability is the score; None for a number, or a language model.
    """

    folder: Path
    step: int
    sha256: str
    label: str | None


@dataclass(frozen=True)
class Classify(DecidedStep):
    """Writes the score that a model gives each row, and keeps the rows with the largest.

    Attributes:
        keep: share of the rows to keep, those before others of the same score.
        at_least: the least score to keep.
        column: for the score.
    """

    model: Model
    keep: float | None
    at_least: float | None
    column: str

    name = "classify"
    dropped_columns = MappingProxyType({SCORE: "double"})

    @property
    def added_columns(self) -> Mapping[str, str]:
        return {self.column: "double"}

    @property
    def settings(self) -> Mapping[str, Any]:
        model = self.model
        return {
            "run": f"{model.folder.name}@{model.step}",
            "sha256": model.sha256,
            "label": model.label,
            "keep": self.keep,
            "at_least": self.at_least,
            "column": self.column,
        }

    @property
    def task_settings(self) -> Mapping[str, Any]:
        return {"column": self.column}

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        scores = np.fromiter(self._scores(), np.float64)
        if self.at_least is not None:
            is_kept = scores >= self.at_least
        else:
            assert self.keep is not None
            is_kept = np.zeros(len(scores), bool)
            is_kept[np.argsort(-scores, kind="stable")[: math.ceil(Fraction(str(self.keep)) * len(scores))]] = True
        rules = pa.array(np.where(is_kept, None, SCORE), pa.string())
        write_decisions(work, pa.table({"row": np.arange(len(scores)), "rule": rules, SCORE: scores}))
        return {"least_score": float(np.min(scores[is_kept]))} if is_kept.any() else {}

    def _scores(self) -> Iterator[float]:
        """The score of each row, in order. Raises DataError for a row that the model cannot use."""
        from aifx.loading.prediction import LoadedModel, predict_rows
        from aifx.loading.restore import restore_run

        run, project = open_run(self.model.folder)
        trained, version = restore_run(run, project, step=self.model.step), self.parents[0]
        rows = _rows(version, LoadedModel(trained), getattr(trained.config.data, "text_field", "text"))
        with report_progress(f"scoring {version.reference}", version.manifest.rows, "rows") as progress:
            for row, prediction in predict_rows(trained, rows):
                score = score_of(prediction, self.model.label)
                if score is None or not math.isfinite(score):
                    why = "it is no class, number or text" if score is None else f"its score is {score}"
                    raise DataError(f"{row.place}: run {run.name} gives it no score", why, "another --run")
                yield score
                progress.advance(1)

    def apply(self, rows: Table, decisions: Table) -> Outcome:
        rows = set_column(rows, self.column, decisions[SCORE])
        left_out = decisions.filter(decisions["rule"].is_valid())
        outcome = without(rows, left_out["row"].to_numpy(), left_out["rule"])
        assert outcome.dropped is not None
        return Outcome(outcome.kept, outcome.dropped.append_column(SCORE, left_out[SCORE]))


def _rows(version: Version, model: LoadedModel, text_field: str) -> Iterator[Row]:
    """The rows of a version as a model reads them."""
    columns = [name for name in version.manifest.columns if name == ROW or name not in RESERVED]
    for path in version.shards:
        for part in read_parts(path, columns):
            for number, values in enumerate(records_of(part), 1):
                row = f"row {values.pop(ROW)}"
                try:
                    if version.manifest.kind == "images":
                        values = dict(model.decode(values["image"]))
                    elif version.manifest.kind == "chat":
                        values = parse_json(values[CHAT])
                    elif version.manifest.kind == "text":
                        values = {**values, text_field: values["text"]}
                except ValueError as e:
                    raise DataError(f"{row} has no score", str(e), "leave the row out") from None
                yield Row(version.reference, number, row, values)


def score_of(prediction: Mapping[str, Any], label: str | None) -> float | None:
    """The score in a prediction: the probability of a class, a number, or minus the bits per byte of a text."""
    if label is not None:
        found: Any = (prediction.get("probabilities") or {}).get(label)
    elif "bits_per_byte" in prediction:
        found = -prediction["bits_per_byte"]
    else:
        found = prediction.get("value")
    return float(found) if isinstance(found, int | float) else None


def open_model(folder: Path, step: StepChoice | None, label: str | None, version: Version) -> Model:
    """The checkpoint of a run that scores the rows of a version.

    Raises UsageError for a run of other data, or whose predictions have no score; CheckpointError.
    """
    from aifx.data.spec import need_spec
    from aifx.kinds import read_config
    from aifx.loading.steps import choose_step

    run, project = open_run(folder)
    config = read_config(run.config, project)
    at = choose_step(run, config, step)
    spec = need_spec(run.assets)
    _check_columns(run, config.parts.names.get("data", ""), [column.name for column in spec.columns], version)
    if label is None and spec.classes:
        why, hint = (
            f"a score is the probability of one of them: {', '.join(spec.classes)}",
            f"--label {spec.classes[0]}",
        )
        raise UsageError(f"run {run.name} predicts classes, and none is named", why, hint)
    if label is not None and label not in spec.classes:
        why = did_you_mean(label, spec.classes) if spec.classes else "it predicts no classes"
        raise UsageError(f"run {run.name} has no class {label!r}", why, "aifx predict shows the classes")
    if spec.target_size > 1 and not spec.classes:
        what = f"run {run.name} predicts {spec.target_size} numbers"
        raise UsageError(what, "a score is one", "train a run with one target")
    return Model(run.path, at, checkpoint_digest(run, at), label)


def checkpoint_digest(run: RunDirectory, step: int) -> str:
    """SHA-256 of a checkpoint's arrays, and of all else that it names. Raises CheckpointError, also for none."""
    from aifx.checkpoint.manifest import read_manifest

    manifest = read_manifest(run.checkpoints / str(step))
    return sha256_of_json(plain([manifest.state_digest, manifest.run]))


def _check_columns(run: RunDirectory, reads: str, wanted: list[str], version: Version) -> None:
    columns = version.manifest.columns
    if missing := [name for name in wanted if name not in columns]:
        why = f"{version.reference} has no column {missing[0]!r}"
        raise UsageError(f"run {run.name} was trained on other columns", why, did_you_mean(missing[0], columns))
    kinds = {"text": "text", "chat": "chat", "images": "images", "table": "table", "series": None, "preferences": None}
    if reads in kinds and kinds[reads] != version.manifest.kind:
        why = f"it reads data of the kind {reads}, and {version.reference} holds {version.manifest.kind}"
        raise UsageError(f"run {run.name} cannot score these rows", why, "aifx runs ls")


def check_column(version: Version, column: str) -> None:
    """Raise UsageError for a column that is not free for scores."""
    manifest = version.manifest
    is_own = manifest.step.name == Classify.name and manifest.step.settings.get("column") == column
    if not column.isprintable() or not column.strip():
        raise UsageError(f"--column {column!r} is no name", "a column has characters that print", "--column quality")
    taken = column if column in (*RESERVED, CHAT, *manifest.columns) else same_in_sql(column, manifest.columns)
    if taken is not None and not (is_own and taken == column):
        hint = f"--column quality_{column.strip('_')}"
        raise UsageError(f"{version.reference} has a column {taken!r}", "scores would replace its values", hint)
