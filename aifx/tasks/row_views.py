"""Rows of a project's data as its model sees them: the tokens and whether each is trained, or the values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from typing import Any

import numpy as np

from aifx.config import Config
from aifx.core.errors import UsageError
from aifx.core.results import Result
from aifx.data.base import Batch, not_finite_input
from aifx.data.order import batch_number
from aifx.data.splits import Split
from aifx.data.text import TokenFormat
from aifx.data.tokenizer import Tokenizer
from aifx.tasks.base import Task, dataset_of, training_source

SHOWN_VALUES = 8
"""A field of so many values is shown as it is."""


@dataclass(frozen=True)
class ShownPart:
    """Tokens in succession that are all trained, or all not.

    Attributes:
        text: their text, with special tokens spelled out.
        trained: whether the loss counts them.
        special: whether they are special tokens; text that spells one is not.
        ids: the tokens.
    """

    text: str
    trained: bool
    special: bool
    ids: tuple[int, ...]


@dataclass(frozen=True)
class ShownExample:
    """A document or conversation within a row; attention stays within it.

    Attributes:
        name: "chosen" or "rejected", if it is one of a pair of answers.
    """

    name: str
    parts: tuple[ShownPart, ...]


@dataclass(frozen=True)
class ShownRow:
    """A row of a batch.

    Attributes:
        row: its number in the order of the split, from 0.
        place: the files and lines of its conversations; empty if unknown.
        tokens: those that the model predicts, without padding: all but the first of each example.
        trained: number of tokens that the loss counts.
    """

    row: int
    place: str
    tokens: int
    trained: int
    examples: tuple[ShownExample, ...]


@dataclass(frozen=True)
class ShownValues:
    """A row of other data than tokens.

    Attributes:
        row: its number in the batch or in the order of the split, from 0.
        place: the file and the line; empty if unknown.
        fields: the values of a table's columns, otherwise the arrays in short, with what of them is not finite.
    """

    row: int
    place: str
    fields: dict[str, str]


@dataclass(frozen=True)
class ShownData(Result):
    """Rows of a split, as `aifx data show --json` prints them.

    Attributes:
        num_rows: of the whole split.
        seq_len: tokens in each; None for other data.
    """

    split: Split
    digest: str
    num_rows: int
    seq_len: int | None
    rows: tuple[ShownRow | ShownValues, ...]


@dataclass(frozen=True)
class ShownBatch(Result):
    """Rows of a training batch, as `aifx data show --step` and `--batch` print them.

    Attributes:
        step: the step that takes the batch, from 1; None if no step does.
        batch: its number, from 0.
        left_out: batches of the run that no step takes.
        skipped: why it taught the run nothing; None if it did, or if the run is not there yet.
        fault: where it holds a NaN or an infinity.
        num_rows: of the whole batch.
    """

    step: int | None
    batch: int
    left_out: tuple[int, ...]
    skipped: str | None
    fault: str | None
    num_rows: int
    rows: tuple[ShownRow | ShownValues, ...]


def show_rows(task: Task, split: Split, first: int, count: int) -> ShownData:
    """`count` rows of a split from the row `first`.

    Raises UsageError if `first` is after the last row.
    """
    form, dataset = task.format, dataset_of(task)
    source = dataset.source(split, 1, seed=None)
    num_rows = source.num_batches or 0
    if first >= num_rows:
        raise UsageError(f"--first {first} is after the last row", f"the {split} split has {num_rows} rows, from 0", "")
    numbers = range(first, min(first + count, num_rows))
    places = (form.places(dataset, split, numbers) if form else []) or [""] * len(numbers)
    batches = [source.read(number, slice(None)) for number in numbers]
    rows = [_row_view(task, *row) for row in zip(batches, numbers, places, strict=True)]
    return ShownData(
        split, dataset.digest, num_rows, batches[0]["inputs"].shape[1] if _has_tokens(task) else None, tuple(rows)
    )


def show_batch(
    task: Task,
    config: Config,
    first: int,
    count: int,
    *,
    step: int | None = None,
    batch: int = 0,
    left_out: tuple[int, ...] = (),
    reasons: Mapping[int, str] | None = None,
) -> ShownBatch:
    """`count` rows from the row `first` of the training batch that `step` takes, or of the batch of this number.

    Args:
        left_out: batches that no step takes, in rising order.
        reasons: why batches taught the run nothing.

    Raises UsageError if `first` is after the last row.
    """
    number = batch if step is None else batch_number(step, left_out)
    if step is None and number not in left_out:
        step = number + 1 - sum(other < number for other in left_out)
    num_rows = config.train.global_batch_size
    if first >= num_rows:
        raise UsageError(f"--first {first} is after the last row", f"a batch has {num_rows} rows, from 0", "")
    found = training_source(task, config).read(number, slice(0, num_rows))
    rows = [
        _row_view(task, {name: values[row : row + 1] for name, values in found.items()}, row, "")
        for row in range(first, min(first + count, num_rows))
    ]
    skipped, fault = (reasons or {}).get(number), not_finite_input(found)
    return ShownBatch(step, number, left_out, skipped, fault, num_rows, tuple(rows))


def _weigher(task: Task) -> Any:
    """The function that gives each target's weight in the loss, of an objective over tokens."""
    return getattr(task.objective, "target_weights", None)


def _has_tokens(task: Task) -> bool:
    return isinstance(task.format, TokenFormat) and _weigher(task) is not None


def _row_view(task: Task, batch: Batch, number: int, place: str) -> ShownRow | ShownValues:
    """The row of a batch that has one."""
    if _has_tokens(task):
        return _token_row(task, batch, number, place)
    example = {name: values[0] for name, values in batch.items()}
    fields = task.format.format_example(example) if task.format else {}
    return ShownValues(number, place, fields or {name: _in_short(value) for name, value in example.items()})


def _token_row(task: Task, batch: Batch, number: int, place: str) -> ShownRow:
    form = task.format
    assert isinstance(form, TokenFormat)
    weights = np.asarray(_weigher(task)(batch))[0]
    parts, names = _examples(batch, weights, form.tokenizer), chain(form.example_names, repeat(""))
    examples = tuple(ShownExample(name, tuple(own)) for name, own in zip(names, parts, strict=False))
    tokens, trained = int(np.count_nonzero(batch["weights"])), int(np.count_nonzero(weights))
    return ShownRow(number, place, tokens, trained, examples)


def _in_short(value: np.ndarray) -> str:
    """A field of a row: its values if they are few, otherwise their type, shape and range."""
    value = np.asarray(value)
    if value.size <= SHOWN_VALUES:
        return np.array2string(value.astype(np.float64) if value.dtype.kind == "V" else value, precision=4)
    numbers = value.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    span = f", {np.min(finite):.4g} to {np.max(finite):.4g}" if finite.size else ""
    bad = value.size - finite.size
    return f"{value.dtype.name} {list(value.shape)}{span}" + (f", {bad} not finite" if bad else "")


def _examples(batch: Batch, weights: np.ndarray, tokenizer: Tokenizer) -> Iterator[Iterator[ShownPart]]:
    """The parts of each segment of a row: its first input, then its targets."""
    inputs, targets = batch["inputs"][0], batch["targets"][0]
    last = int(np.flatnonzero(batch["weights"][0])[-1]) + 1 if batch["weights"].any() else 0
    segments = batch["segment_ids"][0] if "segment_ids" in batch else (np.arange(len(inputs)) < last).astype(int)
    for segment in range(1, int(segments.max(initial=0)) + 1):
        inside = np.flatnonzero(segments == segment)
        ids = [int(inputs[inside[0]]), *map(int, targets[inside])]
        trained = [False, *(weights[inside] > 0).tolist()]
        yield _parts(ids, trained, tokenizer)


def _parts(ids: list[int], trained: list[bool], tokenizer: Tokenizer) -> Iterator[ShownPart]:
    marks: Any = [(of, index in tokenizer.special_ids) for of, index in zip(trained, ids, strict=True)]
    for (is_trained, is_special), found in groupby(range(len(ids)), marks.__getitem__):
        of_part = tuple(ids[place] for place in found)
        yield ShownPart(tokenizer.decode(of_part), is_trained, is_special, of_part)
