"""Labels that are probably wrong, by confident learning: Northcutt, Jiang and Chuang (2021), arXiv 1911.00068.

A label is a suspect if a model that has not seen it is sure of another one. cleanlab decides that from the
probabilities of a model; without those of a model of your own, from a logistic regression in cross-validation.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aifx.core.errors import DataError, EnvironmentFault, UsageError
from aifx.core.extras import install_command
from aifx.core.plurals import counted
from aifx.core.results import Result
from aifx.curation.labels.agreement import decide
from aifx.curation.labels.rows import View, globs_of, probabilities_of, read_predictions, visible_rows
from aifx.curation.labels.store import LabelState
from aifx.data.names import ROW
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import read_shard

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

FOLDS = 5
SIDE = 20
"""Height and width, in pixels, of the images that the regression takes."""


@dataclass(frozen=True)
class Suspect:
    """A label that is probably wrong.

    Attributes:
        likelier: the class that the model takes it for.
        probability: of the label.
    """

    row: str
    label: str
    likelier: str
    probability: float


@dataclass(frozen=True)
class Suspects(Result):
    """The document of `aifx data label suspects --json`.

    Attributes:
        rows: with a label, that were judged.
        unjudged: rows with a label that has too few rows, or without a prediction.
        suspects: the least probable label first.
    """

    reference: str
    column: str
    rows: int
    unjudged: int
    suspects: tuple[Suspect, ...]


def find_suspects(
    version: Version, view: View, column: str, state: LabelState, predictions: Path | None, seed: int = 0
) -> Suspects:
    """The labels of a version that are probably wrong.

    Args:
        state: labels of people, which count before those of the version.
        predictions: a file of `aifx predict`, of a model that was not trained on these labels.

    Raises UsageError, DataError, EnvironmentFault if cleanlab is missing.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        why = "aifx data label suspects needs it"
        raise EnvironmentFault("cleanlab is not installed", why, install_command("cleanlab")) from None
    labels = _labels(version, column, state)
    if predictions is not None:
        rows, classes, probabilities = _predicted(version, labels, predictions)
    else:
        rows, classes, probabilities = _cross_validated(version, view, labels, seed)
    number = {name: index for index, name in enumerate(classes)}
    given = np.array([number[labels[row]] for row in rows])
    ranked = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    suspects = tuple(
        Suspect(
            rows[at], labels[rows[at]], classes[int(probabilities[at].argmax())], float(probabilities[at, given[at]])
        )
        for at in ranked
    )
    return Suspects(version.reference, column, len(rows), len(labels) - len(rows), suspects)


def _labels(version: Version, column: str, state: LabelState) -> dict[str, str]:
    """The label of each row of a version that has one."""
    given = state.labels()
    decided = decide(given)
    names = [ROW, *([column] if column in version.manifest.columns else [])]
    found: dict[str, str] = {}
    for shard in version.shards:
        for record in read_shard(shard, names).to_pylist():
            row = record[ROW]
            label = decided.get(row) if row in given else record.get(column)
            if label is not None:
                found[row] = str(label)
    if len(set(found.values())) < 2:
        what = f"column {column} of {version.reference} has fewer than two different labels"
        hint = f"aifx data label serve {version.manifest.name} --labels A,B"
        raise UsageError(what, "a suspect is a label for which another is likelier", hint)
    return found


def _predicted(
    version: Version, labels: Mapping[str, str], path: Path
) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """The labelled rows that a file predicts, its classes, and the probabilities [rows, classes]."""
    found: dict[str, Mapping[str, float]] = {}
    for row, place, values in read_predictions(version, path):
        nested = probabilities_of(values)
        if not nested:
            why = "the probability of each class is compared with the label"
            raise DataError(f"{place} has no probabilities", why, "aifx predict of a model of classes writes them")
        if row in labels and labels[row] in nested:
            found[row] = nested
    if not found:
        why = f"no row of it is one of {counted(len(labels), 'labelled row')}, with a class of that name"
        hint = f"aifx predict {globs_of(version)} --output {path}"
        raise UsageError(f"{path} predicts no label of {version.reference}", why, hint)
    classes = sorted({name for one in found.values() for name in one})
    probabilities = np.array([[float(one.get(name) or 0) for name in classes] for one in found.values()])
    return list(found), classes, probabilities / probabilities.sum(axis=1, keepdims=True)


def _cross_validated(
    version: Version, view: View, labels: Mapping[str, str], seed: int
) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """The same by a logistic regression that has not seen the row."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if view.kind not in ("text", "images"):
        hint = f"aifx data label suspects {version.manifest.name} --predictions FILE"
        raise UsageError(f"the rows of {version.reference} need a model of your own", f"they are {view.kind}", hint)
    enough = {label for label, count in Counter(labels.values()).items() if count >= FOLDS}
    if len(enough) < 2:
        why = f"in {FOLDS}-fold cross-validation each label needs {FOLDS} rows"
        raise UsageError(f"column of {version.reference} has too few labels to judge", why, "label more rows")
    rows: list[str] = []
    contents: list[Any] = []
    for row, content in _contents(version, view):
        if labels.get(row) in enough:
            rows.append(row)
            contents.append(content)
    if view.kind == "text":
        features: Any = HashingVectorizer(ngram_range=(1, 2), n_features=1 << 18).transform(contents)
    else:
        features = np.stack(contents)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    classes = sorted(enough)
    given = np.array([classes.index(labels[row]) for row in rows])
    regression = LogisticRegression(max_iter=300, C=10.0 if view.kind == "text" else 0.01)
    return rows, classes, cross_val_predict(regression, features, given, cv=folds, method="predict_proba")


def _contents(version: Version, view: View) -> Iterator[tuple[str, Any]]:
    """The text, or the pixels [SIDE * SIDE * 3] from -1 to 1, of each row. Images that are none are left out."""
    from PIL import Image

    from aifx.data.readers.pictures import BadPicture, open_picture

    for row, _, content in visible_rows(version, view):
        value = content[view.columns[0]]
        if view.kind == "text":
            yield row, value or ""
            continue
        try:
            with open_picture(io.BytesIO(value)) as picture:
                small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        except BadPicture as e:
            logger.warning(f"row {row} is left out: {e}")
            continue
        yield row, np.asarray(small, np.float32).ravel() / 127.5 - 1
