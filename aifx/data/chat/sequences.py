"""Conversations as rows of a fixed length: cut to fit, packed, and in the order that training takes them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from aifx.core.digests import hash32
from aifx.data.base import Batch
from aifx.data.chat.store import ChatTokens
from aifx.data.mixing import CYCLE, cycle_stops
from aifx.data.order import shuffled
from aifx.data.sequences import best_fit, empty_batch


@dataclass(frozen=True)
class Truncation:
    """Numbers of conversations that are longer than a sequence."""

    examples: int = 0  # of all splits
    truncated: int = 0  # longer than data.seq_len: cut, or left out
    without_end: int = 0  # cut so that their last answer has lost the token that ends it

    def __add__(self, other: Truncation) -> Truncation:
        return Truncation(
            self.examples + other.examples, self.truncated + other.truncated, self.without_end + other.without_end
        )


@dataclass(frozen=True)
class Fitted:
    """Conversations cut to at most a sequence: int64 `[conversations]` each."""

    numbers: np.ndarray  # in ChatTokens
    starts: np.ndarray  # of the first input, in its tokens
    lengths: np.ndarray  # inputs, at least 1


def fit(
    tokens: ChatTokens, numbers: np.ndarray, seq_len: int, how: Literal["error", "drop", "left", "right"]
) -> tuple[Fitted, Truncation]:
    """Cut the conversations `numbers` to `seq_len` targets, or leave longer ones out.

    Args:
        numbers: int64 `[conversations]`, indices into `tokens`.
        how: `data.truncate`; with "error", the caller has checked that none is longer.
    """
    starts, stops = tokens.starts[numbers], tokens.starts[numbers + 1] - 1
    too_long = stops - starts > seq_len
    ends = _last_ends(tokens)[numbers]
    if how == "left":
        starts = np.maximum(starts, stops - seq_len)
    elif how == "right":
        stops = np.minimum(stops, starts + seq_len)
    kept = ~too_long if how == "drop" else np.ones(len(numbers), bool)
    lost = kept & ((ends > stops) | (ends <= starts))
    fitted = Fitted(numbers[kept], starts[kept], (stops - starts)[kept])
    return fitted, Truncation(len(numbers), int(too_long.sum()), int(lost.sum()))


def _last_ends(tokens: ChatTokens) -> np.ndarray:
    """The index of the assistant's last token in each conversation: a trained end token."""
    written = np.flatnonzero(tokens.writers[:])
    last: np.ndarray = written[np.searchsorted(written, tokens.starts[1:]) - 1]
    return last


@dataclass(frozen=True)
class ChatRows:
    """Rows that hold whole conversations, one after another."""

    tokens: ChatTokens
    fitted: Fitted
    rows: np.ndarray  # int64 [conversations], the row of each
    order: np.ndarray  # the conversations by row

    @classmethod
    def make(cls, tokens: ChatTokens, fitted: Fitted, seq_len: int, *, is_packed: bool) -> ChatRows:
        """Packed by best fit, longest first, or one conversation in a row."""
        count = len(fitted.lengths)
        rows = best_fit(fitted.lengths, seq_len) if is_packed else np.arange(count)
        return cls(tokens, fitted, rows, np.argsort(rows, kind="stable"))

    @cached_property
    def _by_row(self) -> np.ndarray:
        rows: np.ndarray = self.rows[self.order]
        return rows

    def __len__(self) -> int:
        return int(self._by_row[-1]) + 1 if len(self.order) else 0

    def members(self, row: int) -> list[int]:
        """The conversations in a row, as places in `fitted`."""
        places = self.order[bisect_left(self._by_row, row) : bisect_right(self._by_row, row)]
        return [int(place) for place in places]

    def write(self, index: int, batch: Batch, row: int) -> None:
        """Write row `index` into `row` of a batch that `empty_chats` made."""
        column = 0
        for segment, member in enumerate(self.members(index), 1):
            start, length = int(self.fitted.starts[member]), int(self.fitted.lengths[member])
            span = slice(column, column + length)
            batch["inputs"][row, span] = self.tokens.ids[start : start + length]
            batch["targets"][row, span] = self.tokens.ids[start + 1 : start + length + 1]
            batch["writers"][row, span] = self.tokens.writers[start + 1 : start + length + 1]
            batch["weights"][row, span] = 1
            batch["segment_ids"][row, span] = segment
            batch["positions"][row, span] = np.arange(length, dtype=np.int32)
            column += length


def empty_chats(rows: int, seq_len: int, eos_id: int) -> Batch:
    """Rows of padding, as `empty_batch` makes them, with the writer OTHERS (0)."""
    batch = empty_batch(rows, seq_len, eos_id, documents=True)
    batch["writers"] = np.zeros((rows, seq_len), np.int32)
    return batch


@dataclass(frozen=True)
class Mix:
    """The entry and the row at each place of training: a function of (seed, place).

    Attributes:
        sizes: rows of each entry.
        shares: of each in what training reads; in proportion to `sizes` if there are none.
    """

    sizes: Sequence[int]
    shares: Sequence[float] = ()

    def __call__(self, place: int, seed: int) -> tuple[int, int]:
        if not self.shares:
            index = shuffled(place, sum(self.sizes), seed)[1]
            stops = np.cumsum(self.sizes).tolist()
            entry = bisect_right(stops, index)
            return entry, index - (stops[entry - 1] if entry else 0)
        cycle, within = shuffled(place, CYCLE, hash32("mix", seed))
        stops = self._stops
        entry = bisect_right(stops, within)
        first = stops[entry - 1] if entry else 0
        turn = cycle * (stops[entry] - first) + within - first
        return entry, shuffled(turn, self.sizes[entry], hash32("entry", seed, entry))[1]

    @cached_property
    def _stops(self) -> list[int]:
        """Where the rows of each entry end in a cycle."""
        return cycle_stops(self.shares, CYCLE)
