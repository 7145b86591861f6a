"""Tables as batches: inputs from the columns of a file, and a target from one of them. Also simple predictors of it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, sparse
from scipy.special import log_softmax, softmax

from aifx.core.errors import ConfigError, DataError
from aifx.core.project import Project
from aifx.data.arrays import (
    FOLD,
    ArrayDataset,
    ArrayFormat,
    Arrays,
    LabelsOf,
    Places,
    array_dataset,
    hash_fraction,
    held_out_hints,
    split_places,
    take,
    target_units,
)
from aifx.data.base import Batch, Labels
from aifx.data.columns import (
    CALENDAR,
    CONVERSIONS,
    PARTS,
    Table,
    as_number,
    as_text,
    describe_columns,
    encode_column,
    encoder,
    foreign_date,
    format_value,
    infer_columns,
    infer_kind,
    is_missing,
    names_rows,
    odd_number,
    open_source,
    read_table,
    scale_of,
    table_of,
)
from aifx.data.names import CLUSTER, SPLIT
from aifx.data.readers.rows import Row, field
from aifx.data.sections import TableSection
from aifx.data.spec import SPEC_FILE, Column, DataSpec, need_spec
from aifx.data.splits import SPLITS, Split

logger = logging.getLogger(__name__)

MOST_LABELS = 10  # a target with so many different whole numbers, or fewer, has classes
PREDICTION = "prediction"  # the column that `aifx predict` adds

L2 = 1e-4  # penalty on the squared weights of linear models, for each example
MOST_ITERATIONS = 200

MOST_TREE_CATEGORIES = 255
"""scikit-learn's histogram gradient boosting takes so many of a column; more are read as numbers."""


@dataclass(frozen=True)
class TableFormat(ArrayFormat):
    """Tables: "inputs" float32 `[rows, columns]` as `DataSpec.columns` describes them, and "targets" `[rows]`.

    Targets are int32 numbers of classes, or float32 numbers of mean 0 and variance 1 over the training split.
    """

    section: TableSection
    spec: DataSpec

    @classmethod
    def summary(cls, section: TableSection, project: Project) -> list[str]:
        """Lines about the columns of `data.path`. Raises DataError, ConfigError."""
        table, splits = read_splits(section, project)
        return infer_spec(table, splits["train"], section)[1]

    @classmethod
    def open(
        cls, section: TableSection, project: Project, assets: Path, folds: int = 1
    ) -> tuple[TableFormat, ArrayDataset]:
        """The rows of `data.path`. Columns are inferred from the training split, unless `assets` has them.

        With 2 `folds` or more, all rows that are not for the test are in training and in validation. "fold" int32
        `[rows]` is then their fold, -1 in the test split. Raises DataError if a member has no other fold.
        """
        table, splits = read_splits(section, project)
        if folds > 1:
            splits["train"] = splits["validation"] = ~splits["test"]
        if (assets / SPEC_FILE).exists():
            spec = need_spec(assets)
            wanted = section.columns | dict.fromkeys([*section.ignore, section.target])
            if odd := [one.name for one in spec.columns if wanted.get(one.name, one.kind) != one.kind]:
                what = f"data.columns, data.ignore or data.target changes column {odd[0]!r}"
                why = "the columns of a run are fixed when it starts"
                raise ConfigError(what, why, "begin another: aifx train --run NAME")
        else:
            part = table.source.part
            if part is not None and section.group_column is None and section.time_column is None:
                part.warn_of_duplicates(section.validation_fraction, section.test_fraction)
            spec, lines = infer_spec(table, splits["train"], section)
            logger.info("\n".join(lines))
        arrays = encode_table(table, spec, section.target)
        if folds > 1:
            arrays = {**arrays, FOLD: row_folds(table, splits["train"], section, folds)}
        taken = {split: take(arrays, which) for split, which in splits.items()}
        data = array_dataset(taken, how=("table", spec.columns), name=table.name, hints=held_out_hints("rows"))
        spec = replace(spec, fields=data.spec.fields)
        data = replace(
            data,
            spec=spec,
            places=_places(table, splits),
            labels=_labels(table, splits, section),
            file_versions=table.source.file_versions,
        )
        return cls(section, spec), data

    def open_file(self, path: Path) -> ArrayDataset:
        table = read_table(path, str(path)).known(self.section.target)
        arrays = encode_table(table, self.spec, self.section.target)
        if FOLD in self.spec.fields:
            arrays = {**arrays, FOLD: np.full(table.num_rows, -1, np.int32)}
        data = array_dataset({"test": arrays}, name=str(path))
        whole: dict[Split, np.ndarray] = {"test": np.ones(table.num_rows, bool)}
        return replace(data, spec=self.spec, places=_places(table, whole), labels=_labels(table, whole, self.section))

    @property
    def input_columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column.name for column in self.spec.columns))

    @property
    def outcome_column(self) -> str:
        return self.section.target

    def encode(self, row: Mapping[str, Any]) -> Batch:
        numbers = []
        for column, encode in self._encoders:
            value = field(row, column.name)
            try:
                numbers.append(encode(value))
            except ValueError as error:
                raise ValueError(f"column {column.name!r}: {error}") from None
        return {"inputs": np.array([numbers], np.float32), **target_units(self.spec, 1)}

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Batch | None:
        inputs = np.empty((len(rows), len(self._encoders)), np.float32)
        for index, (column, encode) in enumerate(self._encoders):
            inputs[:, index] = encode_column(column, encode, [field(row, column.name) for row in rows])
        return {"inputs": inputs, **target_units(self.spec, len(rows))}

    def records(self, row: Row, prediction: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The columns of the row, then the first value of the prediction as "prediction", and its others after dots."""
        first, *others = prediction
        added = {PREDICTION: prediction[first], **{f"{PREDICTION}.{name}": prediction[name] for name in others}}
        if twice := added.keys() & row.values.keys():
            what = f"{row.place}: the row has a column {min(twice)!r} already"
            raise DataError(what, "aifx predict adds one of this name", "rename the column, or leave it out")
        return [{**row.values, **added}]

    def format_example(self, example: Mapping[str, np.ndarray]) -> dict[str, str]:
        fields = {}
        for column, number in zip(self.spec.columns, example["inputs"].tolist(), strict=True):
            fields[f"{column.name} ({column.part})" if column.part else column.name] = format_value(column, number)
        spec, target = self.spec, example["targets"].item()
        value = spec.classes[target] if spec.classes else f"{target * spec.target_scale + spec.target_mean:.4g}"
        return {**fields, self.section.target: value}

    @cached_property
    def _encoders(self) -> list[tuple[Column, Callable[[Any], float]]]:
        return [(column, encoder(column)) for column in self.spec.columns]

    def baselines(self, dataset: ArrayDataset, split: Split) -> Iterator[tuple[str, np.ndarray]]:
        # A file of `aifx eval --data` has no rows to learn from; with folds, validation rows are those.
        if "train" not in dataset.splits or (FOLD in self.spec.fields and split != "test"):
            return iter(())
        return table_baselines(self.spec, dataset.splits["train"], dataset.splits[split]["inputs"])


def _places(table: Table, splits: Mapping[Split, np.ndarray]) -> Places:
    """Where the rows of each split are from. It keeps their numbers, not their values."""
    source, numbers = table.source, {split: table.numbers[which] for split, which in splits.items()}
    return lambda split, rows: source.places(numbers[split][list(rows)])


def _labels(table: Table, splits: Mapping[Split, np.ndarray], section: TableSection) -> LabelsOf:
    """The values of a column, by default of `data.group_column`, in one more reading: they take no memory."""
    source, numbers = table.source, {split: table.numbers[which] for split, which in splits.items()}

    def labels(split: Split, column: str | None) -> Labels | None:
        name = column or section.group_column
        return None if name is None else Labels.of(source.column(name)[numbers[split]])

    return labels


def read_splits(section: TableSection, project: Project) -> tuple[Table, dict[Split, np.ndarray]]:
    """The rows of `data.path` with a known target, and which of them are in each split. Raises DataError."""
    table = table_of(open_source(section, project))
    keys = {"target": [section.target], "columns": section.columns, "ignore": section.ignore}
    keys |= {key: [name] for key in ("group_column", "time_column") if (name := getattr(section, key)) is not None}
    for key, names in keys.items():
        for name in names:
            table.column(name, f"data.{key}")
    table = table.known(section.target)
    splits = _splits(table, section)
    if (count := int(splits["train"].sum())) < 2:
        why = f"{count} of its {table.num_rows} rows are not held out"
        raise DataError(f"{table.name}: too few rows to train on", why, "add rows, or lower data.test_fraction")
    return table, splits


def _splits(table: Table, section: TableSection) -> dict[Split, np.ndarray]:
    """Which rows are in each split, bool `[rows]`: by the column `_split`, if a version has it. Raises DataError.

    With a `validation_fraction` of 0, the rows that `_split` names for validation are training rows.
    """
    part = table.source.part
    if part is not None and part.has_column(SPLIT):
        named = np.array([part.split_of(value) for value in part.column(SPLIT)])[table.numbers]
        if not section.validation_fraction:
            named = np.where(named == "validation", "train", named)
        return {split: named == split for split in SPLITS}
    return split_places(row_places(table, section), section.validation_fraction, section.test_fraction)


def row_places(table: Table, section: TableSection) -> np.ndarray:
    """Where each row is in [0, 1), float64 `[rows]`: training first, then validation, the test last.

    Rows of one group, of one time, of one duplicate cluster, or with equal values have one place.
    """
    if section.group_column is not None:
        return np.array([_text_fraction(as_text(value)) for value in table.values[section.group_column]])
    if (name := section.time_column) is not None:
        kind = section.columns.get(name) or infer_kind(table.values[name])
        if kind not in ("numeric", "date"):
            what = f"{table.name}: data.time_column = {name!r} has no order"
            why = f"its values are {kind}, such as {table.values[name][0]!r}"
            raise DataError(what, why, "name a column of numbers, or of dates such as 2024-12-31")
        times = table.convert(name, lambda value: CONVERSIONS[kind]("" if is_missing(value) else value))
        first = {at: index for index, at in reversed(list(enumerate(sorted(times))))}
        return np.array([first[at] for at in times]) / len(times)
    if (part := table.source.part) is not None and part.has_column(CLUSTER):
        clusters = part.column(CLUSTER)
        return np.array([_text_fraction(as_text(clusters[number])) for number in table.numbers])
    rows = zip(*table.values.values(), strict=True)  # with ignored columns: a number of its own makes a row another
    return np.array([_text_fraction("\x1f".join(map(as_text, row))) for row in rows])


def row_folds(table: Table, is_train: np.ndarray, section: TableSection, folds: int) -> np.ndarray:
    """The fold of each training row, int32 `[rows]`, and -1 of the others.

    Rows of one place (see `row_places`) are in one fold. With `data.time_column`, a fold is a stretch of the time;
    otherwise the hash of the place decides. Raises DataError if one fold has all rows.
    """
    places = row_places(table.rows_where(is_train), section)
    if section.time_column is None:  # the places that are not held out fill a part of [0, 1), or parts by `_split`
        places = np.array([hash_fraction(place) for place in places])
    numbers = (places * folds).astype(np.int32)
    if len(np.unique(numbers)) < 2:
        by = "data.time_column" if section.time_column else "data.group_column" if section.group_column else "the rows"
        why = f"by the values of {by}, which stay together, one of {folds} folds has all {len(numbers)} rows"
        raise DataError(f"{table.name}: train.folds = {folds} leaves a member without rows", why, "add rows of others")
    found = np.full(table.num_rows, -1, np.int32)
    found[is_train] = numbers
    return found


def _text_fraction(text: str) -> float:
    return hash_fraction(np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8))


def infer_spec(table: Table, is_train: np.ndarray, section: TableSection) -> tuple[DataSpec, list[str]]:
    """The spec of a table without fields: its columns by the training rows, and its target. Also lines about them."""
    train = table.rows_where(is_train)
    inferred = {name: _infer(train, name, section) for name in table.values if name != section.target}
    left_out = {name: found for name, found in inferred.items() if isinstance(found, str)}
    columns = [column for found in inferred.values() if not isinstance(found, str) for column in found]
    if not columns:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "it has the target alone"
        raise DataError(f"{table.name}: no column to predict from", why, "aifx config keys data")
    spec, target = _infer_target(table, is_train, section)
    rows = [*describe_columns(columns), *((name, "left out", why) for name, why in left_out.items())]
    rows.append((section.target, "target", target))
    width = max(len(name) for name, _, _ in rows)
    head = f"columns of {table.name}, from {train.num_rows:,} training rows of {table.num_rows:,}:"
    return replace(spec, columns=tuple(columns)), [head, *(f"  {n:<{width}}  {k:<11}  {what}" for n, k, what in rows)]


def _infer(train: Table, name: str, section: TableSection) -> list[Column] | str:
    """The inputs that a column becomes, or why it is left out."""
    values, kind = train.values[name], section.columns.get(name)
    if name in section.ignore:
        return "data.ignore"
    inferred = kind or infer_kind(values)
    if kind is None and name == section.group_column:
        return "data.group_column"
    if kind is None and name == section.time_column and inferred != "date":
        return "data.time_column"
    if kind is None and inferred == "categorical" and (odd := foreign_date(values)) is not None:
        return f"dates such as {odd!r} are not read; write 2024-12-31"
    if kind is None and inferred == "categorical" and names_rows(values):
        if (odd := odd_number(values)) is not None:
            return f"{odd!r} is no number, as most of its values are; leave such cells empty"
        return f'most of its texts differ; data.columns = {{"{name}" = "categorical"}} reads it'
    train.convert(name, lambda value: is_missing(value) or CONVERSIONS[inferred](value))  # names the line of a mistake
    parts = CALENDAR if kind is None and name == section.time_column else PARTS
    columns = infer_columns(name, inferred, values, bins=section.bins, parts=parts)
    is_one = len({as_text(value) for value in values}) == 1
    return columns or ("the same value in all training rows" if is_one else "no value comes twice in the training rows")


def _infer_target(table: Table, is_train: np.ndarray, section: TableSection) -> tuple[DataSpec, str]:
    """A spec with the classes of the target or the mean and scale of its training rows; and a line about it."""
    name, values = section.target, table.values[section.target]
    kind = section.columns.get(name) or infer_kind(values)
    if kind == "date":
        what = f"{table.name}: data.target = {name!r} is a date"
        raise ConfigError(what, "aifx predicts classes and numbers", f'data.columns = {{"{name}" = "categorical"}}')
    if kind == "numeric":
        numbers = np.array(table.convert(name, as_number))
        is_few = len(np.unique(numbers)) <= MOST_LABELS and bool((numbers == np.round(numbers)).all())
        if name in section.columns or not is_few:
            mean, scale = float(numbers[is_train].mean()), scale_of(numbers[is_train])
            text = f'a number, {numbers.min():.6g} to {numbers.max():.6g}: objective.kind = "regression"'
            return DataSpec({}, target_mean=mean, target_scale=scale), text
    if kind == "categorical" and name not in section.columns and names_rows(values):
        what = f"{table.name}: data.target = {name!r} has neither numbers nor classes"
        odd = odd_number(values)
        why = "most of its texts differ" if odd is None else f"{odd!r} is no number, as most of its values are"
        hint = f'data.columns = {{"{name}" = "categorical"}}' if odd is None else "leave such cells empty"
        raise DataError(what, why, hint)
    classes = sorted(set(map(as_text, values)))
    by_value: dict[Any, str] = {}
    firsts = ((by_value.setdefault(CONVERSIONS[kind](text), text), text) for text in classes)
    if same := next((pair for pair in firsts if pair[0] != pair[1]), None):  # such as "1" and "1.0", or "no" and "No"
        what = f"{table.name}: data.target = {name!r} has {same[0]!r} and {same[1]!r}, which are the same {kind} value"
        raise DataError(what, "they would be two classes", f'data.columns = {{"{name}" = "categorical"}} keeps both')
    with suppress(ValueError):
        classes.sort(key=as_number)
    if len(classes) < 2:
        what = f"{table.name}: data.target = {name!r} has one class only, {classes[0]!r}"
        raise DataError(what, "a model needs two classes or more", "add rows of another class")
    if len(trained := {as_text(value) for value in compress(values, is_train)}) < 2:
        what = f"{table.name}: the training rows have one class only, {trained.pop()!r}"
        raise DataError(what, f"data.target = {name!r} has others in held-out rows", "hold out other rows, or fewer")
    first = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return DataSpec({}, classes=tuple(classes)), f"{len(classes)} classes: {first}"


def encode_table(table: Table, spec: DataSpec, target: str) -> Arrays:
    """ "inputs", "targets" and their units of rows. Raises DataError naming the line of a value that does not fit."""
    inputs = [table.convert(column.name, encoder(column)) for column in spec.columns]
    if spec.classes:
        numbers = {name: number for number, name in enumerate(spec.classes)}

        def number_of(value: Any) -> int:
            if (number := numbers.get(as_text(value))) is None:
                raise ValueError(f"{value!r} is none of the classes {', '.join(spec.classes[:5])}")
            return number

        targets = np.array(table.convert(target, number_of), np.int32)
    else:
        values = np.array(table.convert(target, as_number))
        targets = ((values - spec.target_mean) / spec.target_scale).astype(np.float32)
    units = target_units(spec, len(targets))
    return {"inputs": np.array(inputs, np.float32).T.copy(), "targets": targets, **units}


def table_baselines(spec: DataSpec, train: Arrays, inputs: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The name and the outputs `[examples, outputs]` of each baseline for `inputs` `[examples, columns]`.

    Outputs are log-probabilities of classes, or values of the scaled target.
    """
    count, num_classes = len(inputs), len(spec.classes)
    targets = train["targets"]
    learned, asked = design(spec.columns, train["inputs"]), design(spec.columns, inputs)
    if num_classes:
        shares = np.bincount(targets, minlength=num_classes) / len(targets)
        yield "majority", np.tile(np.log(np.maximum(shares, 1e-9)), (count, 1))
        yield "logistic", logistic_regression(learned, targets, num_classes, asked)
    else:
        yield "mean", np.full((count, 1), targets.mean())
        yield "linear", linear_regression(learned, targets, asked)
    if importlib.util.find_spec("sklearn") is not None:
        yield "boosted trees", boosted_trees(spec, train, inputs)


def design(columns: tuple[Column, ...], inputs: np.ndarray) -> sparse.csr_array:
    """The inputs of linear models, `[examples, features]`: numbers, a mark for each missing one, a mark per category,
    and a constant. A missing number is 0, the mean."""
    rows, ones = np.arange(len(inputs)), np.ones(len(inputs))
    parts = []
    for column, values in zip(columns, inputs.T, strict=True):
        if column.is_categorical:
            shape = (len(rows), column.num_categories)
            parts.append(sparse.csr_array((ones, (rows, values.astype(np.int64))), shape=shape))
        else:
            missing = np.isnan(values)
            parts.append(sparse.csr_array(np.stack([np.where(missing, 0, values), missing], axis=1, dtype=np.float64)))
    return sparse.hstack([*parts, sparse.csr_array(ones[:, None])], format="csr")


def linear_regression(learned: sparse.csr_array, targets: np.ndarray, asked: sparse.csr_array) -> np.ndarray:
    """Ridge regression: the values `[examples, 1]` for `asked`."""
    damping = np.sqrt(L2 * learned.shape[0])
    weights = sparse.linalg.lsqr(learned, targets.astype(np.float64), damp=damping, iter_lim=1000)[0]
    return np.asarray(asked @ weights)[:, None]


def logistic_regression(
    learned: sparse.csr_array, labels: np.ndarray, num_classes: int, asked: sparse.csr_array
) -> np.ndarray:
    """Multinomial logistic regression by L-BFGS: the log-probabilities `[examples, classes]` for `asked`."""
    count, num_features = learned.shape
    rows = np.arange(count)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(num_features, num_classes)
        logits = learned @ weights
        errors = softmax(logits, axis=1)
        nats = -log_softmax(logits, axis=1)[rows, labels].mean()
        errors[rows, labels] -= 1
        gradient = learned.T @ errors / count + L2 * weights
        return float(nats + L2 / 2 * (weights**2).sum()), gradient.ravel()

    start = np.zeros(num_features * num_classes)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": MOST_ITERATIONS})
    return np.asarray(log_softmax(asked @ found.x.reshape(num_features, num_classes), axis=1))


def boosted_trees(spec: DataSpec, train: Arrays, inputs: np.ndarray) -> np.ndarray:
    """scikit-learn's histogram gradient boosting with its defaults: outputs as `table_baselines` gives them."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    categorical = [0 < column.num_categories <= MOST_TREE_CATEGORIES for column in spec.columns]
    kind = HistGradientBoostingClassifier if spec.classes else HistGradientBoostingRegressor
    trees = kind(categorical_features=categorical, random_state=0).fit(train["inputs"], train["targets"])
    if not spec.classes:
        return np.asarray(trees.predict(inputs))[:, None]
    probabilities = np.full((len(inputs), len(spec.classes)), 1e-9)
    probabilities[:, trees.classes_] = np.maximum(trees.predict_proba(inputs), 1e-9)  # classes_: of the training rows
    return np.log(probabilities)
