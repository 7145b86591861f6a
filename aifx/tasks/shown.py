"""Rows of a project's data as its model sees them: the tokens, and whether each is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from typing import Any

import numpy as np

from aifx.config import Config
from aifx.core.errors import UsageError
from aifx.data.base import Batch, Split
from aifx.data.text import TokenFormat
from aifx.data.tokenizer import Tokenizer
from aifx.tasks.base import Task, dataset_of, part_name


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
class ShownData:
    """What `aifx data show --json` prints. `num_rows` are those of the whole split, `seq_len` tokens in each."""

    split: Split
    digest: str
    num_rows: int
    seq_len: int
    rows: tuple[ShownRow, ...]


def show_rows(task: Task, config: Config, split: Split, first: int, count: int) -> ShownData:
    """`count` rows of a split from the row `first`.

    Raises UsageError for data without tokens, and if `first` is after the last row.
    """
    form, dataset = task.format, dataset_of(task)
    weigh = getattr(task.objective, "target_weights", None)
    if not (isinstance(form, TokenFormat) and weigh):
        why = f"{part_name(config, 'data')} with {part_name(config, 'objective')} does not train tokens"
        raise UsageError("these rows cannot be shown", why, "aifx data show shows text, chats and preferences")
    source = dataset.source(split, 1, seed=None)
    num_rows = source.num_batches or 0
    if first >= num_rows:
        raise UsageError(f"--first {first} is after the last row", f"the {split} split has {num_rows} rows, from 0", "")
    numbers = range(first, min(first + count, num_rows))
    places = form.places(dataset, split, numbers) or [""] * len(numbers)
    rows = []
    for number, place in zip(numbers, places, strict=True):
        batch = source.read(number, slice(None))
        weights = np.asarray(weigh(batch))[0]
        parts, names = _examples(batch, weights, form.tokenizer), chain(form.example_names, repeat(""))
        examples = tuple(ShownExample(name, tuple(own)) for name, own in zip(names, parts, strict=False))
        tokens, trained = int(np.count_nonzero(batch["weights"])), int(np.count_nonzero(weights))
        rows.append(ShownRow(number, place, tokens, trained, examples))
    return ShownData(split, dataset.digest, num_rows, batch["inputs"].shape[1], tuple(rows))


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
