"""A project's conversations, or pairs of answers of which one is preferred, as batches of sequences."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from aifx.core.digests import hash32, sha256_of_values
from aifx.core.errors import DataError, UsageError
from aifx.core.files import replace_file
from aifx.core.project import Project
from aifx.data.base import TEXT_BYTES, Batch, Labels, no_column
from aifx.data.chat.assets import chat_tokenizer, open_renderer, own_vocab_size
from aifx.data.chat.rendering import ChatRenderer
from aifx.data.chat.rows import Preference, content_text, parse_row
from aifx.data.chat.section import ChatSection
from aifx.data.chat.store import ChatCorpus, ChatTokens, chats_of, open_chats, tokenize
from aifx.data.columns import text_array
from aifx.data.corpus import SplitTokens
from aifx.data.file_index import ImplicitVersion
from aifx.data.order import CYCLE, cycle_stops, part_at, shuffled
from aifx.data.readers.rows import Row, read_rows
from aifx.data.readers.sources import SourceFile
from aifx.data.row_cache import read_checked, with_digest
from aifx.data.sections import OWN_TOKENIZERS
from aifx.data.spec import DataSpec, Field
from aifx.data.splits import SPLITS, Split
from aifx.data.text import PackedSequences, TokenFormat, best_fit, check_vocab_size, empty_batch
from aifx.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

CHOSEN, REJECTED = 1, 2
"""Segments of a row that holds a pair."""


class Truncation(NamedTuple):
    """Numbers of conversations that are longer than a sequence."""

    examples: int = 0  # of all splits
    truncated: int = 0  # longer than data.seq_len: cut, or left out
    without_end: int = 0  # cut so that their last answer has lost the token that ends it


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
    def fit(
        cls,
        tokens: ChatTokens,
        numbers: np.ndarray,
        seq_len: int,
        how: Literal["error", "drop", "left", "right"],
        rows_of: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[ChatRows, Truncation]:
        """Cut the conversations `numbers` to `seq_len` targets, or leave longer ones out.

        Args:
            numbers: int64 `[conversations]`, indices into `tokens`.
            how: `data.truncate`; with "error", the caller has checked that none is longer.
            rows_of: from the lengths of those that stay to the row of each, int64 `[conversations]`.
        """
        starts, stops = tokens.starts[numbers], tokens.starts[numbers + 1] - 1
        too_long = stops - starts > seq_len
        written = np.flatnonzero(tokens.writers[:])
        ends = written[np.searchsorted(written, tokens.starts[numbers + 1]) - 1]  # the assistant's last tokens
        if how == "left":
            starts = np.maximum(starts, stops - seq_len)
        elif how == "right":
            stops = np.minimum(stops, starts + seq_len)
        kept = ~too_long if how == "drop" else np.ones(len(numbers), bool)
        lost = kept & ((ends > stops) | (ends <= starts))
        numbers, starts, lengths = numbers[kept], starts[kept], (stops - starts)[kept]
        rows = rows_of(lengths)
        order = np.argsort(rows, kind="stable")
        spans = np.stack([rows, starts, lengths, np.zeros_like(rows)], axis=1)[order]
        split = SplitTokens(tokens.ids, tokens.starts, closed=True, num_bytes=0)
        found = cls(tokens, numbers[order], PackedSequences(split, spans, documents=True))
        return found, Truncation(len(too_long), int(too_long.sum()), int(lost.sum()))

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

    def __call__(self, place: int, seed: int | None) -> tuple[int, int]:
        """Without a seed the rows are in order; behind the last is an entry after the last."""
        if seed is None or not self.shares:
            index = place if seed is None else shuffled(place, sum(self.sizes), seed)[1]
            return part_at(index, self._stops)
        cycle, within = shuffled(place, CYCLE, hash32("mix", seed))
        entry, nth = part_at(within, self._stops)
        turn = cycle * (self._stops[entry] - within + nth) + nth
        return entry, shuffled(turn, self.sizes[entry], hash32("entry", seed, entry))[1]

    @cached_property
    def _stops(self) -> list[int]:
        """Where the rows of each entry end: in a cycle if there are shares, otherwise in all."""
        return cycle_stops(self.shares, CYCLE) if self.shares else list(accumulate(self.sizes))


@dataclass(frozen=True)
class ChatSource:
    """Batches {"inputs", "targets", "writers", "segment_ids", "positions": int32, "weights": float32}, all
    `[rows, seq_len]`.

    A weight is 1 on each token of a conversation but its first, and 0 on padding. `writers` says who wrote the target
    (`rendering.OTHERS`, `EARLIER` or `COMPLETION`).
    Segments are 1, 2, ... by conversation and 0 on padding; positions count within each.
    """

    entries: Sequence[ChatRows]
    mix: Mix
    seed: int | None
    batch_size: int
    seq_len: int
    eos_id: int

    @property
    def num_batches(self) -> int | None:
        return -(-sum(self.mix.sizes) // self.batch_size) if self.seed is None else None

    def read(self, number: int, rows: slice) -> Batch:
        places = range(number * self.batch_size, (number + 1) * self.batch_size)[rows]
        batch = empty_chats(len(places), self.seq_len, self.eos_id)
        for row, found in enumerate(map(self.find, places)):
            if found is not None:
                found[0].write(found[1], batch, row)
        return batch

    def find(self, place: int) -> tuple[ChatRows, int] | None:
        """The row at a place; without a seed they are in order, and there is none after the last."""
        entry, index = self.mix(place, self.seed)
        return (self.entries[entry], index) if entry < len(self.entries) else None


@dataclass(frozen=True)
class ChatData:
    """A data set of conversations.

    Attributes:
        splits: the rows of each split by entry of `data.train`.
        truncation: of all splits.
    """

    spec: DataSpec
    digest: str
    tokenizer: Tokenizer
    section: ChatSection
    corpus: ChatCorpus
    splits: Mapping[Split, Sequence[ChatRows]]
    truncation: Truncation

    @property
    def file_versions(self) -> Mapping[str, ImplicitVersion]:
        """The files that it was made of, by the key that names them."""
        return self.corpus.file_versions

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> ChatSource:
        """Without a seed, each conversation once."""
        entries = self.splits[split]
        if not any(map(len, entries)):
            raise self.corpus.no_split(split)
        sizes = [len(entry) for entry in entries]
        shares = self.section.mix if split == "train" and seed is not None else ()
        mix = Mix(sizes, shares if len(shares) == len(sizes) else ())
        if any(share and not size for size, share in zip(sizes, mix.shares, strict=False)):
            what = f"{self.corpus.names('train')}: an entry of data.train has no conversation for training"
            raise DataError(what, "data.mix gives it a share", "change data.train and data.mix")
        return ChatSource(entries, mix, seed, batch_size, self.section.seq_len, self.tokenizer.eos_id)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Tokens of conversations, trained or not."""
        return {"tokens": int(np.count_nonzero(batch["weights"]))}


@dataclass(frozen=True)
class ChatFormat(TokenFormat):
    """Conversations of files, a tokenizer with a chat template, sequences of `data.seq_len` tokens."""

    section: ChatSection
    spec: DataSpec
    tokenizer: Tokenizer
    renderer: ChatRenderer

    @classmethod
    def describe(cls, section: ChatSection, project: Project) -> DataSpec:
        size = own_vocab_size(section)
        if size is None and section.tokenizer not in OWN_TOKENIZERS:
            size = chat_tokenizer(section, section.tokenizer_path(project)).vocab_size
        return chat_spec(section, size)

    @classmethod
    def open(cls, section: ChatSection, project: Project, assets: Path) -> tuple[ChatFormat, ChatData]:
        """Reuses what was tokenized before, unless its files have changed."""
        corpus = open_chats(section, project)
        form = cls._with(section, open_renderer(section, project, assets, corpus))
        data = form._open(corpus)
        for split in filter(corpus.has, SPLITS):
            data.source(split, 1, seed=None)
        return form, data

    @classmethod
    def load(cls, section: ChatSection, spec: DataSpec, assets: Path) -> ChatFormat:
        return cls._with(section, open_renderer(section, None, assets, None))

    @classmethod
    def _with(cls, section: ChatSection, renderer: ChatRenderer) -> ChatFormat:
        tokenizer = renderer.tokenizer
        size = section.vocab_size or tokenizer.vocab_size
        check_vocab_size(size, tokenizer)
        return cls(section, chat_spec(section, size), tokenizer, renderer)

    def _open_files(self, files: Mapping[Split, Sequence[SourceFile]], project: Project | None) -> ChatData:
        return self._open(chats_of(list(files.items()), self.section, project))

    def places(self, dataset: Any, split: Split, rows: Sequence[int]) -> list[str]:
        source = dataset.source(split, 1, seed=None)
        found, place = [source.find(row) for row in rows], dataset.corpus.place
        # Both answers of a pair are on one line.
        return [", ".join({place(of.tokens, n): None for n in of.members(at)}) for of, at in filter(None, found)]

    def labels(self, dataset: Any, split: Split, column: str | None) -> Labels | None:
        """The file and line of the conversation of each target, or what the line has in a column."""
        of_conversation = _labels_of(dataset, column)
        found = []
        for rows in filter(len, dataset.splits[split]):
            places = rows.packed.places(self.section.seq_len)
            numbers = np.searchsorted(rows.tokens.starts, places, side="right") - 1
            found.append(np.where(places < 0, -1, of_conversation.codes[numbers]))
        return Labels(of_conversation.names, np.concatenate(found))

    def split_digest(self, dataset: Any, split: Split) -> str:
        return sha256_of_values(dataset.corpus.digest, split)

    def sample_prompt(self, text: str) -> list[int]:
        """The text is a user's message, which the model answers."""
        return self.renderer.prompt([{"role": "user", "content": text}], "log.sample")

    def encode(self, row: Mapping[str, Any]) -> Batch:
        """A conversation as one sequence, with the number of its bytes."""
        conversation = parse_row(Row("rows", 1, "the row", row))
        if isinstance(conversation, Preference):
            raise ValueError("the row has two answers: predict messages, or prompt and completion")
        try:
            example = self.renderer.example(conversation)
        except DataError as error:
            raise ValueError(f"{error.what}: {error.why}") from None
        if len(example.ids) - 1 > self.section.seq_len:
            raise ValueError(f"it has {len(example.ids)} tokens, and data.seq_len is {self.section.seq_len}")
        zeros = np.zeros(1, np.int64)
        tokens = ChatTokens(*example, np.array([0, len(example.ids)]), zeros, zeros, zeros, zeros)
        rows, _ = ChatRows.fit(tokens, zeros, self.section.seq_len, "error", np.zeros_like)
        batch = empty_chats(1, self.section.seq_len, self.tokenizer.eos_id)
        rows.write(0, batch, 0)
        num_bytes = sum(len(content_text(message).encode()) for message in conversation.messages)
        return {**batch, TEXT_BYTES: np.array([num_bytes], np.int32)}

    def _open(self, corpus: ChatCorpus) -> ChatData:
        section = self.section
        digest, tokens = tokenize(corpus, self.renderer)
        check_lengths(np.diff(tokens.starts) - 1, section, "conversation", partial(corpus.place, tokens))

        def rows_of(lengths: np.ndarray) -> np.ndarray:
            is_packed = section.packing == "examples"
            return best_fit(lengths, section.seq_len) if is_packed else np.arange(len(lengths))

        fit = partial(ChatRows.fit, tokens, seq_len=section.seq_len, how=section.truncate, rows_of=rows_of)
        fitted = corpus.by_split(tokens, fit)
        splits = {split: [rows for rows, _ in entries] for split, entries in fitted.items()}
        cuts = [cut for entries in fitted.values() for _, cut in entries]
        truncation = Truncation(*map(sum, zip(*cuts, strict=True)))
        _report(truncation, section)
        how = (section.seq_len, section.packing, section.truncate, section.mix)
        whole = sha256_of_values("chat", digest, *how)
        return ChatData(self.spec, whole, self.tokenizer, section, corpus, splits, truncation)


def _labels_of(dataset: ChatData, column: str | None) -> Labels:
    """The place of each conversation of the data set, or the text in a column of its row. Raises DataError."""
    tokens, corpus = next(rows.tokens for rows in chain(*dataset.splits.values()) if len(rows)), dataset.corpus
    if column is None:
        return Labels.of(np.array([corpus.place(tokens, number) for number in range(len(tokens.files))]))
    values: dict[tuple[int, int], Any] = {}
    known: set[str] = set()
    for number, file in enumerate(corpus.all_files):
        for row in read_rows(file):
            known |= row.values.keys()
            values[number, row.line or row.number] = row.values.get(column)
    if column not in known:
        raise no_column(column, corpus.names(SPLITS[0]), known)
    keys = zip(tokens.files.tolist(), tokens.rows.tolist(), strict=True)
    return Labels.of(text_array([values[key] for key in keys]))


def chat_spec(section: ChatSection, vocab_size: int | None) -> DataSpec:
    """The fields of the batches, and the size of the vocabulary."""
    names = ("inputs", "targets", "writers", "segment_ids", "positions")
    fields = {name: Field((section.seq_len,), "int32", ("seq",)) for name in names}
    fields["weights"] = Field((section.seq_len,), "float32", ("seq",))
    return DataSpec(fields, section.vocab_size or vocab_size)


def check_lengths(lengths: np.ndarray, section: ChatSection, what: str, place: Callable[[int], str]) -> None:
    """Raise DataError for an example that is too long, if that is to be an error.

    Args:
        lengths: targets of each example.
        what: an example is, such as "conversation".
        place: of an example by its number, for the message.
    """
    too_long = np.flatnonzero(lengths > section.seq_len)
    if section.truncate != "error" or not len(too_long):
        return
    first = int(too_long[0])
    problem = f"{place(first)}: the {what} has {lengths[first]:,} tokens, and data.seq_len is {section.seq_len:,}"
    why = f"{len(too_long):,} of {len(lengths):,} are too long; the longest has {lengths.max():,}"
    raise DataError(problem, why, f"aifx train --set data.seq_len={lengths.max()}    (or data.truncate: docs/chat.md)")


def _report(truncation: Truncation, section: ChatSection) -> None:
    if not truncation.truncated:
        return
    done = {"drop": "left out", "left": "cut on the left", "right": "cut on the right"}[section.truncate]
    lost = f"; {truncation.without_end:,} of them lose the token that ends the last answer"
    logger.warning(
        f"{truncation.truncated:,} of {truncation.examples:,} conversations have more than data.seq_len = "
        f"{section.seq_len:,} tokens: {done}{lost if truncation.without_end else ''}"
    )


# Pairs of answers: a row holds both, each a segment of its own


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

    def read(self, number: int, rows: slice) -> Batch:
        batch = super().read(number, rows)
        places = range(number * self.batch_size, (number + 1) * self.batch_size)[rows]
        batch["reference"] = np.zeros((len(places), 2), np.float32)
        for row, pair in enumerate(map(self.pair, places)):
            if pair is not None:  # NaN, so that a loss without references cannot look like one with them
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

    def labels(self, dataset: Any, split: Split, column: str | None) -> Labels | None:
        """The file and line of each pair, or what the line has in a column."""
        of_answer = _labels_of(dataset, column)
        firsts = [rows.members(row)[0] for rows in dataset.splits[split] for row in range(len(rows))]
        return Labels(of_answer.names, of_answer.codes[firsts])

    def encode(self, row: Any) -> Batch:
        why = "it compares the answers of a pair, from the weights that its training started from"
        raise UsageError("a model of preferences makes no predictions", why, "aifx eval --data FILE")

    def _open(self, corpus: ChatCorpus) -> ChatData:
        section = self.section
        digest, tokens = tokenize(corpus, self.renderer, "preferences")
        lengths = (np.diff(tokens.starts) - 1).reshape(-1, 2).sum(1)
        check_lengths(lengths, section, "pair of answers", lambda pair: corpus.place(tokens, 2 * pair))

        def rows_of(numbers: np.ndarray) -> ChatRows:
            kept = numbers[np.repeat(lengths[numbers[::2] // 2] <= section.seq_len, 2)]
            # A pair in each row.
            return ChatRows.fit(tokens, kept, section.seq_len, "drop", lambda lengths: np.arange(len(lengths)) // 2)[0]

        splits = corpus.by_split(tokens, rows_of)
        whole = sha256_of_values("preferences", digest, section.seq_len, section.mix)
        cut = Truncation(len(lengths), int((lengths > section.seq_len).sum()))
        return PreferenceData(self.spec, whole, self.tokenizer, section, corpus, splits, cut, len(lengths))


def _with_reference(spec: DataSpec) -> DataSpec:
    return replace(spec, fields={**spec.fields, "reference": Field((2,), "float32")})
