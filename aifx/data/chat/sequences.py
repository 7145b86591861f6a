"""Conversations as rows of a fixed length: cut to fit, packed, and in the order that training takes them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from aifx.core.digests import hash32
from aifx.data.base import Batch
from aifx.data.chat.store import ChatTokens
from aifx.data.mixing import CYCLE, cycle_stops
from aifx.data.order import shuffled
from aifx.data.sequences import PackedSequences, empty_batch
from aifx.data.store import SplitTokens


class Truncation(NamedTuple):
    """Numbers of conversations that are longer than a sequence."""

    examples: int = 0  # of all splits
    truncated: int = 0  # longer than data.seq_len: cut, or left out
    without_end: int = 0  # cut so that their last answer has lost the token that ends it


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
    """Rows that hold whole conversations, one after another.

    Attributes:
        numbers: of the conversations in `tokens`, by row, int64 `[conversations]`.
        packed: the rows, with a span for each conversation.
    """

    tokens: ChatTokens
    numbers: np.ndarray
    packed: PackedSequences

    @classmethod
    def make(cls, tokens: ChatTokens, fitted: Fitted, rows: np.ndarray) -> ChatRows:
        """`rows`: the row of each conversation, int64 `[conversations]`."""
        order = np.argsort(rows, kind="stable")
        spans = np.stack([rows, fitted.starts, fitted.lengths, np.zeros_like(rows)], axis=1)[order]
        split = SplitTokens(tokens.ids, tokens.starts, closed=True, num_bytes=0)
        return cls(tokens, fitted.numbers[order], PackedSequences(split, spans, documents=True))

    def __len__(self) -> int:
        return len(self.packed)

    def members(self, row: int) -> list[int]:
        """The conversations in a row: their numbers in `tokens`."""
        found: list[int] = self.numbers[self.packed.members(row)].tolist()
        return found

    def write(self, index: int, batch: Batch, row: int) -> None:
        """Write row `index` into `row` of a batch that `empty_chats` made."""
        self.packed.write(index, 0, batch, row)
        column = 0
        for _, start, length, _ in self.packed.spans[self.packed.members(index)].tolist():
            batch["writers"][row, column : column + length] = self.tokens.writers[start + 1 : start + length + 1]
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
