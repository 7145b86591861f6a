"""Pairs of answers, of which one is preferred, as batches: a row holds both, each a segment of its own."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from aifx.core.digests import sha256_of_values
from aifx.core.errors import UsageError
from aifx.core.files import replace_file
from aifx.core.project import Project
from aifx.data.base import Batch
from aifx.data.chat.format import ChatData, ChatFormat, ChatSource, chat_spec, check_lengths
from aifx.data.chat.section import ChatSection
from aifx.data.chat.sequences import ChatRows, Truncation, fit
from aifx.data.chat.store import ChatCorpus, tokenize, tokens_digest
from aifx.data.checked_files import read_checked, with_digest
from aifx.data.spec import DataSpec, Field
from aifx.data.splits import Split

CHOSEN, REJECTED = 1, 2
"""Segments of a row."""


@dataclass(frozen=True)
class References:
    """Log-probabilities of the answers under the model that training started from.

    Attributes:
        key: digest of the data and the weights that they are of.
        values: float32 `[pairs, 2]`, of the chosen and the rejected answer.
    """

    key: str
    values: np.ndarray

    def as_file(self) -> bytes:
        """The content of `reference.npz`, with the SHA-256 of it at its end."""
        stream = io.BytesIO()
        np.savez(stream, key=np.array(self.key), values=self.values)
        return with_digest(stream.getvalue())

    def write(self, path: Path) -> None:
        replace_file(path, self.as_file())

    @classmethod
    def read(cls, path: Path) -> References:
        with np.load(io.BytesIO(read_checked(path))) as arrays:
            return cls(str(arrays["key"]), arrays["values"])


@dataclass(frozen=True)
class PreferenceSource(ChatSource):
    """Batches of `ChatSource` with one pair in a row, and "reference" float32 `[rows, 2]`."""

    references: References | None = None

    def read(self, step: int, rows: slice) -> Batch:
        batch = super().read(step, rows)
        places = range(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        batch["reference"] = np.zeros((len(places), 2), np.float32)
        for row, place in enumerate(places):
            if (pair := self.pair(place)) is not None:
                # NaN, so that a loss without references cannot look like one with them.
                batch["reference"][row] = np.nan if self.references is None else self.references.values[pair]
        return batch

    def pair(self, place: int) -> int | None:
        """The number of the pair at a place, in the order of the files; None after the last."""
        found = self.find(place)
        return None if found is None else found[0].members(found[1])[0] // 2


@dataclass(frozen=True)
class PreferenceData(ChatData):
    """A data set of pairs."""

    num_pairs: int = 0
    references: References | None = None

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> PreferenceSource:
        made = super().source(split, batch_size, seed=seed)
        return PreferenceSource(**vars(made), references=self.references)

    def place_of(self, pair: int) -> str:
        """The file and line of a pair."""
        entries = (rows for rows in chain(*self.splits.values()) if len(rows))
        return self.corpus.place(next(entries).tokens, 2 * pair)


@dataclass(frozen=True)
class PreferenceFormat(ChatFormat):
    """Pairs of answers, a tokenizer with a chat template, rows of `data.seq_len` tokens that hold a pair."""

    example_names: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    @classmethod
    def describe(cls, section: ChatSection, project: Project) -> DataSpec:
        return _with_reference(super().describe(section, project))

    @classmethod
    def _with(cls, section: ChatSection, renderer: Any) -> PreferenceFormat:
        made = super()._with(section, renderer)
        return cls(section, _with_reference(chat_spec(section, made.spec.vocab_size)), made.tokenizer, made.renderer)

    def encode(self, row: Any) -> Batch:
        why = "it compares the answers of a pair, from the weights that its training started from"
        raise UsageError("a model of preferences makes no predictions", why, "aifx eval --data FILE")

    def _open(self, corpus: ChatCorpus) -> ChatData:
        section, digest = self.section, tokens_digest(corpus, self.renderer, "preferences")
        tokens = tokenize(corpus, self.renderer, digest)
        lengths = (np.diff(tokens.starts) - 1).reshape(-1, 2).sum(1)
        check_lengths(lengths, section, "pair of answers", lambda pair: corpus.place(tokens, 2 * pair))

        def rows_of(numbers: np.ndarray) -> ChatRows:
            kept = numbers[np.repeat(lengths[numbers[::2] // 2] <= section.seq_len, 2)]
            fitted, _ = fit(tokens, kept, section.seq_len, "drop")
            return ChatRows.make(tokens, fitted, np.arange(len(kept)) // 2)  # a pair in each row

        splits = corpus.by_split(tokens, rows_of)
        whole = sha256_of_values("preferences", digest, section.seq_len, section.mix)
        cut = Truncation(len(lengths), int((lengths > section.seq_len).sum()))
        return PreferenceData(self.spec, whole, self.tokenizer, section, corpus, splits, cut, len(lengths))


def _with_reference(spec: DataSpec) -> DataSpec:
    return replace(spec, fields={**spec.fields, "reference": Field((2,), "float32")})
