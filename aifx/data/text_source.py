"""Text as batches: of one data set, or of several in turn."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from aifx.core.errors import DataError
from aifx.data.base import TEXT_BYTES, Batch
from aifx.data.mixing import Turns
from aifx.data.order import shuffled
from aifx.data.sequences import Sequences, empty_batch


@dataclass(frozen=True)
class TextSource:
    """Batches {"inputs", "targets": int32 [rows, seq_len], "weights": float32 [rows, seq_len]}.

    A weight is 1 where the target counts and 0 on padding. With packing "documents" also "segment_ids" (1, 2, ... by
    document, 0 on padding) and "positions" (within the document), int32 [rows, seq_len]. Without a seed also
    "num_bytes", the bytes of the text of the targets that count, int32 [rows].
    """

    sequences: Sequences
    seed: int | None
    batch_size: int
    seq_len: int
    eos_id: int
    documents: bool

    @property
    def num_batches(self) -> int | None:
        return -(-len(self.sequences) // self.batch_size) if self.seed is None else None

    def read(self, step: int, rows: slice) -> Batch:
        places = range(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        batch = self.empty_batch(len(places))
        for row, place in enumerate(places):
            self.write(place, batch, row)
        return batch

    def empty_batch(self, rows: int) -> Batch:
        batch = empty_batch(rows, self.seq_len, self.eos_id, documents=self.documents)
        return batch if self.seed is not None else {**batch, TEXT_BYTES: np.zeros(rows, np.int32)}

    def write(self, place: int, batch: Batch, row: int) -> None:
        """Write the sequence at a place of the order into a row of a batch; nothing behind the last one."""
        count = len(self.sequences)
        epoch, index = (0, place) if self.seed is None else shuffled(place, count, self.seed)
        if index < count:
            self.sequences.write(index, epoch, batch, row)


@dataclass(frozen=True)
class MixedSource:
    """Training batches of several data sets, each in its share.

    Attributes:
        sources: of the training split of each, with a seed of its own.
        most_rows: that can be read; without a bound if None.
    """

    sources: tuple[TextSource, ...]
    turns: Turns
    name: str  # for errors: the version of the mix

    num_batches = None

    @property
    def batch_size(self) -> int:
        return self.sources[0].batch_size

    @property
    def most_rows(self) -> int | None:
        return self.turns.num_places

    def read(self, step: int, rows: slice) -> Batch:
        places = range(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        batch = self.sources[0].empty_batch(len(places))
        for row, place in enumerate(places):
            try:
                part, turn = self.turns(place)
            except IndexError:
                what = f"{self.name} has no row left for training batch {step}"
                why = f"its epochs allow {self.most_rows:,} rows"
                raise DataError(what, why, "aifx data mix with more --epochs") from None
            self.sources[part].write(turn, batch, row)
        return batch


@dataclass(frozen=True)
class JoinedSequences:
    """The sequences of several data sets, one after another: what an evaluation reads."""

    parts: tuple[Sequences, ...]

    def __len__(self) -> int:
        return self._stops[-1]

    def write(self, index: int, epoch: int, batch: Batch, row: int) -> None:
        part = bisect_right(self._stops, index)
        first = self._stops[part - 1] if part else 0
        self.parts[part].write(index - first, epoch, batch, row)

    @cached_property
    def _stops(self) -> list[int]:
        return list(accumulate(map(len, self.parts)))
