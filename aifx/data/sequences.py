"""Sequences of a fixed length, cut from a split's tokens or packed from its documents."""

from __future__ import annotations

import errno
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from aifx.core.digests import hash32
from aifx.core.os_errors import errno_of
from aifx.data.base import TEXT_BYTES, Batch
from aifx.data.checked_files import read_cached, read_checked, write_checked
from aifx.data.store import SplitTokens


def empty_batch(rows: int, seq_len: int, eos_id: int, *, documents: bool) -> Batch:
    """Padding: inputs and targets eos, weights 0, and with `documents` segment 0 at position 0."""
    shape = (rows, seq_len)
    batch: Batch = {name: np.full(shape, eos_id, np.int32) for name in ("inputs", "targets")}
    batch["weights"] = np.zeros(shape, np.float32)
    if documents:
        batch |= {name: np.zeros(shape, np.int32) for name in ("segment_ids", "positions")}
    return batch


class Sequences(Protocol):
    """Examples of a fixed length."""

    def __len__(self) -> int: ...

    def write(self, index: int, epoch: int, batch: Batch, row: int) -> None:
        """Write example `index` of `epoch` into `row` of a batch that `empty_batch` made."""


@dataclass(frozen=True)
class StreamSequences:
    """Windows of seq_len targets over the tokens laid in a ring, each epoch from another place.

    The place is a function of (seed, epoch), so that over the epochs the model meets each token at many positions, and
    the fewer than seq_len tokens that an epoch leaves over are not always the same.
    """

    split: SplitTokens
    seq_len: int
    seed: int

    @cached_property
    def _ring(self) -> int:
        """The length of the ring: the eos that closes the last document is the one that opens the first."""
        return len(self.split.tokens) - self.split.closed

    def __len__(self) -> int:
        return self._ring // self.seq_len

    def write(self, index: int, epoch: int, batch: Batch, row: int) -> None:
        """Write example `index` of `epoch` into `row` of a batch that `empty_batch` made."""
        tokens, ring = self.split.tokens, self._ring
        phase = hash32("phase", self.seed, epoch) * ring >> 32
        start = (phase + index * self.seq_len) % ring
        stop = start + self.seq_len + 1
        window = tokens[start : min(stop, ring)]
        if stop > ring:
            window = np.concatenate([window, tokens[: stop - ring]])
        batch["inputs"][row] = window[:-1]
        batch["targets"][row] = window[1:]
        batch["weights"][row] = 1
        if stop > ring and not self.split.closed:  # the last document does not end there: the first eos is no target
            batch["weights"][row, ring - start - 1] = 0


@dataclass(frozen=True)
class PackedSequences:
    """Rows that hold whole spans of tokens, one after another."""

    split: SplitTokens
    # int64 [spans, 4], in order of row: row, position of the first input, number of inputs, and how many of the first
    # targets are context only (weight 0).
    spans: np.ndarray
    documents: bool  # whether batches mark the spans of a row

    def __len__(self) -> int:
        return int(self.spans[-1, 0]) + 1 if len(self.spans) else 0

    def members(self, index: int) -> slice:
        """The spans in example `index`."""
        rows = self.spans[:, 0]  # searched in place: NumPy would copy all of it
        return slice(bisect_left(rows, index), bisect_left(rows, index + 1))

    def write(self, index: int, epoch: int, batch: Batch, row: int) -> None:
        """Write example `index`, the same in each epoch, into `row` of a batch that `empty_batch` made."""
        column = 0
        for segment, (_, start, length, skip) in enumerate(self.spans[self.members(index)].tolist(), 1):
            stop = start + length + 1
            window = self.split.tokens[start:stop]
            span = slice(column, column + length)
            batch["inputs"][row, span] = window[:-1]
            batch["targets"][row, span] = window[1:]
            batch["weights"][row, column + skip : column + length] = 1
            if TEXT_BYTES in batch:
                batch[TEXT_BYTES][row] += self.split.text_bytes(start + 1 + skip, stop)
            if self.documents:
                batch["segment_ids"][row, span] = segment
                batch["positions"][row, span] = np.arange(length, dtype=np.int32)
            column += length


def stream_windows(split: SplitTokens, seq_len: int, stride: int) -> PackedSequences:
    """Windows of which each token of the split is a target that counts exactly once.

    The first window scores all its targets, those after it the next `stride`, with seq_len - stride tokens or more of
    context before them.
    """
    spans = _windows(np.array([0]), np.array([split.num_targets]), seq_len, stride, context=True)
    spans = np.insert(spans, 0, np.arange(len(spans)), axis=1)
    return PackedSequences(split, spans, documents=False)


def packed_documents(split: SplitTokens, seq_len: int, stride: int | None, index: Path) -> PackedSequences:
    """Documents packed into rows by best fit, longest first; each token is a target that counts exactly once.

    Documents longer than a row are cut: without `stride` one part after another, with it as `stream_windows` does.
    The packing is kept in the file `index`, next to the tokens, and read from there the next time. A damaged one is
    made again, with a warning.
    """
    spans = read_cached(_read_spans, index, "index")
    if spans is None:
        # A document cut by the next split has no target after its last token.
        stops = np.minimum(split.documents[1:], split.num_targets)
        pieces = _windows(split.documents[:-1], stops, seq_len, stride or seq_len, context=stride is not None)
        rows = best_fit(pieces[:, 1], seq_len)
        order = np.lexsort((pieces[:, 0], rows))
        spans = np.concatenate([rows[order, None], pieces[order]], axis=1)
        try:
            write_checked(index, spans.tobytes())
        except OSError as error:
            if errno_of(error) not in (errno.EACCES, errno.EPERM, errno.EROFS):  # beside a data set of somebody else
                raise
    return PackedSequences(split, spans, documents=True)


def _read_spans(index: Path) -> np.ndarray:
    return np.frombuffer(read_checked(index), np.int64).reshape(-1, 4)


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each length, longest first into the fullest row with room: int64 [len(lengths)].

    Rows with equal room are interchangeable, so there is a list of rows for each room. A bit per list that is not empty
    finds the tightest one at once.
    """
    rows = np.empty(len(lengths), np.int64)
    waiting: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = num_rows = 0
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = waiting[room].pop()
            if not waiting[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, num_rows
            num_rows += 1
        rows[item] = row
        if left := room - length:
            waiting[left].append(row)
            rooms |= 1 << left
    return rows


def _windows(starts: np.ndarray, stops: np.ndarray, seq_len: int, stride: int, *, context: bool) -> np.ndarray:
    """Cuts each [start, stop) of inputs into windows of up to seq_len: int64 [windows, 3] of start, length, skip.

    Within one range the first window scores seq_len targets and each after it `stride` more. With `context` each
    begins as far before what it scores as it can.
    """
    lengths = np.asarray(stops, np.int64) - starts
    more = np.maximum(lengths - seq_len, 0)
    counts = np.where(lengths > 0, 1 + -(-more // stride), 0)
    which = np.repeat(np.arange(len(lengths)), counts)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin, size = np.asarray(starts, np.int64)[which], lengths[which]
    scored_from = np.where(nth == 0, 0, seq_len + (nth - 1) * stride)
    scored_to = np.minimum(seq_len + nth * stride, size)
    first = np.maximum(scored_to - seq_len, 0) if context else scored_from
    return np.stack([begin + first, scored_to - first, scored_from - first], axis=1)
