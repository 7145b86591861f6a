"""A project's text as batches of sequences of one length, cut from its tokens or packed from its documents."""

from __future__ import annotations

import errno
import logging
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from aifx.core.artifact import writable_folder
from aifx.core.digests import hash32, sha256_of, sha256_of_values
from aifx.core.errors import ConfigError, DataError
from aifx.core.files import remove_temporary, replace_file
from aifx.core.os_errors import errno_of
from aifx.core.progress import report_progress
from aifx.core.project import Project, cache_path
from aifx.data.base import TEXT_BYTES, Batch, DataFormat, Dataset, Labels, no_column
from aifx.data.corpus import Corpus, SplitTokens, TokenStore, corpus_of, open_corpora, stored_tokens
from aifx.data.file_index import ImplicitVersion
from aifx.data.order import Turns, part_at, shuffled
from aifx.data.readers.rows import Row, field, read_rows
from aifx.data.readers.sources import SourceFile, check_regular, local_file
from aifx.data.row_cache import read_cached, read_checked, rows_key, write_checked
from aifx.data.sections import OWN_TOKENIZERS, DocumentSection, TextSection, TokenSection
from aifx.data.spec import DataSpec, Field
from aifx.data.splits import SPLITS, Split
from aifx.data.tokenizer import (
    BYTE_TOKENS,
    CHARACTER,
    END_OF_TEXT,
    NUM_BYTES,
    WORDS,
    Tokenizer,
    character_tokenizer,
    train_tokenizer,
)

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"

VOCAB_SIZES = {"bpe": 1024, "byte": BYTE_TOKENS}
"""Most tokens by `data.tokenizer` if `data.vocab_size` is not set; characters are counted in the text."""


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
    """Rows that hold whole spans of tokens, one after another, the same in each epoch.

    Attributes:
        spans: int64 `[spans, 4]`, in order of row: row, position of the first input, number of inputs, and how many of
            the first targets are context only (weight 0).
        documents: whether batches mark the spans of a row.
    """

    split: SplitTokens
    spans: np.ndarray
    documents: bool

    def __len__(self) -> int:
        return int(self.spans[-1, 0]) + 1 if len(self.spans) else 0

    def members(self, index: int) -> slice:
        """The spans in example `index`."""
        rows = self.spans[:, 0]  # searched in place: NumPy would copy all of it
        return slice(bisect_left(rows, index), bisect_left(rows, index + 1))

    def places(self, seq_len: int) -> np.ndarray:
        """The position of each target that counts, -1 elsewhere: int64 `[rows, seq_len]`."""
        found = np.full((len(self), seq_len), -1, np.int64)
        row = column = 0
        for at, start, length, skip in self.spans.tolist():
            row, column = at, column if at == row else 0
            found[row, column + skip : column + length] = np.arange(start + 1 + skip, start + length + 1)
            column += length
        return found

    def write(self, index: int, epoch: int, batch: Batch, row: int) -> None:
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
    """Documents packed into rows by `best_fit`; each token is a target that counts exactly once.

    Documents longer than a row are cut: without `stride` one part after another, with it as `stream_windows` does.
    The packing is kept in the file `index`, next to the tokens, and read from there the next time. A damaged one is
    made again, with a warning.
    """
    spans = read_cached(lambda path: np.frombuffer(read_checked(path), np.int64).reshape(-1, 4), index, "index")
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


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each length, longest first into the fullest row with room: int64 [len(lengths)].

    This is the bin packing heuristic "best fit decreasing", which needs at most 11/9 of the fewest rows and 4 more
    (Johnson, "Near-optimal bin packing algorithms", 1973). Rows with equal room are interchangeable, so `waiting` has a
    list of rows for each room. Bit r of `rooms` says that the list of room r is not empty: the lowest bit at the item's
    length or above is the tightest room, found without a search.
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
    """Cut each [start, stop) of inputs into windows of up to seq_len: int64 [windows, 3] of start, length, skip.

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

    def read(self, number: int, rows: slice) -> Batch:
        places = range(number * self.batch_size, (number + 1) * self.batch_size)[rows]
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

    def read(self, number: int, rows: slice) -> Batch:
        places = range(number * self.batch_size, (number + 1) * self.batch_size)[rows]
        batch = self.sources[0].empty_batch(len(places))
        for row, place in enumerate(places):
            try:
                part, turn = self.turns(place)
            except IndexError:
                what = f"{self.name} has no row left for training batch {number}"
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
        part, place = part_at(index, self._stops)
        self.parts[part].write(place, epoch, batch, row)

    @cached_property
    def _stops(self) -> list[int]:
        return list(accumulate(map(len, self.parts)))


@dataclass(frozen=True)
class TextData:
    """A data set of text: its tokenizer and its token store."""

    spec: DataSpec
    digest: str
    tokenizer: Tokenizer
    section: TextSection
    corpus: Corpus
    store: TokenStore

    @property
    def file_versions(self) -> Mapping[str, ImplicitVersion]:
        """The files that it was made of, by the key that names them."""
        return self.corpus.file_versions

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> TextSource:
        """Without a seed, each token is a target once."""
        if not self.has(split):
            raise self.corpus.no_split(split)
        tokens, seq_len, stride = self.store.splits[split], self.section.seq_len, _stride(self.section)
        if self.tokenizer.is_byte_level:
            tokens = replace(tokens, bytes_by_id=self.tokenizer.token_bytes())
        sequences: Sequences
        if documents := self.section.packing == "documents":
            index = self.store.path / f"{split}.packing-{seq_len}-{stride if seed is None else 'training'}"
            sequences = packed_documents(tokens, seq_len, stride if seed is None else None, index)
        elif seed is None:
            sequences = stream_windows(tokens, seq_len, stride)
        else:
            sequences = StreamSequences(tokens, seq_len, seed)
        return TextSource(sequences, seed, batch_size, seq_len, self.tokenizer.eos_id, documents)

    def has(self, split: Split) -> bool:
        """Whether the project asks for a split, or there is text in it."""
        return self.corpus.has(split) or self.store.splits[split].num_targets > 0

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets that count, and the bytes of their text if the batch has them."""
        num_bytes = {"bytes": int(batch[TEXT_BYTES].sum())} if TEXT_BYTES in batch else {}
        return {"tokens": int(np.count_nonzero(batch["weights"])), **num_bytes}


@dataclass(frozen=True)
class MixedText:
    """Several data sets of text with one tokenizer, read in their shares.

    Attributes:
        weights: share of the training tokens from each part; they need not sum to 1.
        epochs: how often each token of a part may be read; without a bound if None.
        name: the version of the mix.
    """

    spec: DataSpec
    digest: str
    parts: tuple[TextData, ...]
    weights: tuple[float, ...]
    epochs: tuple[float | None, ...]
    name: str

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> TextSource | MixedSource:
        """Without a seed, each token of each part is a target once."""
        if seed is None:
            parts = [part for part in self.parts if part.has(split)] or self.parts[:1]
            sources = [part.source(split, batch_size, seed=None) for part in parts]
            return replace(sources[0], sequences=JoinedSequences(tuple(source.sequences for source in sources)))
        seeds = [hash32("part", seed, number) for number in range(len(self.parts))]
        sources = [part.source(split, batch_size, seed=one) for part, one in zip(self.parts, seeds, strict=True)]
        sizes = [len(source.sequences) for source in sources]
        bounds = zip(self.epochs, sizes, strict=True)
        limits = [None if most is None else max(round(most * size), 1) for most, size in bounds]
        shares = self.weights
        if sources[0].documents:  # rows are not full: a part whose rows hold less gives more of them
            targets = [part.store.splits[split].num_targets for part in self.parts]
            shares = tuple(w * size / n for w, size, n in zip(shares, sizes, targets, strict=True))
        return MixedSource(tuple(sources), Turns(shares, tuple(limits)), self.name)

    def counts(self, batch: Batch) -> dict[str, int]:
        return self.parts[0].counts(batch)


def held_out_sequences(dataset: TextData | MixedText, split: Split) -> list[PackedSequences]:
    """The sequences of a split as an evaluation reads them, one part after the other."""
    sequences = dataset.source(split, 1, seed=None).sequences  # type: ignore[union-attr]  # no MixedSource without seed
    parts = sequences.parts if isinstance(sequences, JoinedSequences) else (sequences,)
    return [part for part in parts if isinstance(part, PackedSequences)]


class TokenFormat(DataFormat):
    """A format of tokens, such as text: a model of it may also write.

    Attributes:
        example_names: names of the examples in each row, if they have any.
    """

    example_names: ClassVar[tuple[str, ...]] = ()

    section: DocumentSection
    tokenizer: Tokenizer

    def sample_prompt(self, text: str) -> list[int]:
        """The tokens that a model reads before it writes a sample in training: by default those of `text`."""
        return self.tokenizer.encode_prompt(text)

    def open_file(self, path: Path) -> Dataset:
        file = local_file(path)
        check_regular(path, file.name, "a data set is a file", "aifx eval --data FILE")
        return self._open_files({"test": [self.section.check(file)]}, None)

    def open_split(self, split: Split, project: Project) -> Dataset | None:
        files = self.section.find(split, project) if split != "train" else []
        return self._open_files({split: files}, project) if files else None

    @abstractmethod
    def _open_files(self, files: Mapping[Split, Sequence[SourceFile]], project: Project | None) -> Dataset:
        """The data set of these files, without held-out splits; they may be of a project. Raises DataError."""


@dataclass(frozen=True)
class TextFormat(TokenFormat):
    """Text: files of documents, a tokenizer, sequences of `data.seq_len` tokens."""

    section: TextSection
    spec: DataSpec
    tokenizer: Tokenizer

    @classmethod
    def describe(cls, section: TextSection, project: Project) -> DataSpec:
        if section.vocab_size is None and section.tokenizer not in OWN_TOKENIZERS:
            return text_spec(section, _load_tokenizer(section.tokenizer_path(project), section))
        return text_spec(section)

    @classmethod
    def open(cls, section: TextSection, project: Project, assets: Path) -> tuple[TextFormat, TextData | MixedText]:
        """Reuses what was tokenized before, unless its files have changed."""
        corpora = open_corpora(section, project)
        tokenizer = _tokenizer(section, project, corpora, assets)
        form = cls(section, text_spec(section, tokenizer), tokenizer)
        parts = tuple(map(form._open, corpora))
        for split in SPLITS:
            asked = [part for part in parts if part.has(split)]
            if split == "train" or sum(part.store.splits[split].num_targets for part in asked) < section.seq_len:
                for part in asked:  # a mix joins what it holds out, and reads each training split for itself
                    _check_length(split, part.store.splits[split], section, part.corpus)
        if len(parts) == 1:
            return form, parts[0]
        mixed = [corpus.part for corpus in corpora if corpus.part]
        weights, epochs = tuple(part.weight for part in mixed), tuple(part.epochs for part in mixed)
        digest = sha256_of_values("mix", *(part.digest for part in parts), weights, epochs)
        return form, MixedText(form.spec, digest, parts, weights, epochs, str(section.dataset))

    @classmethod
    def load(cls, section: TextSection, spec: DataSpec, assets: Path) -> TextFormat:
        tokenizer = _load_tokenizer(assets / TOKENIZER_FILE, section)
        return cls(section, text_spec(section, tokenizer), tokenizer)

    def labels(self, dataset: TextData | MixedText, split: Split, column: str | None) -> Labels | None:
        """The document of each target: its number in the split, from 1."""
        if column is not None:
            raise no_column(column, "text")
        found, before = [], 0
        for part in held_out_sequences(dataset, split):
            starts, places = part.split.documents[:], part.places(self.section.seq_len)
            documents = np.searchsorted(starts, places, side="left") - 1  # the eos that ends a document is its target
            found.append(np.where(places < 0, -1, documents + before))
            before += len(starts) - 1
        return Labels(tuple(map(str, range(1, before + 1))), np.concatenate(found))

    def sizes(self, dataset: TextData | MixedText, split: Split) -> dict[str, np.ndarray]:
        """The bytes of the text of each target."""
        found = []
        for part in held_out_sequences(dataset, split):
            places = part.places(self.section.seq_len)
            found.append(np.where(places < 0, 0, part.split.target_bytes()[places]))
        return {"bytes": np.concatenate(found)}

    def split_digest(self, dataset: TextData | MixedText, split: Split) -> str:
        parts = dataset.parts if isinstance(dataset, MixedText) else (dataset,)
        return sha256_of_values(*(part.corpus.digest for part in parts), split)

    def _open_files(self, files: Mapping[Split, Sequence[SourceFile]], project: Project | None) -> TextData:
        return self._open(corpus_of(files, self.section, project))

    def read_rows(self, file: SourceFile) -> Iterator[Row]:
        """A .txt file is one text, as it is in training."""
        return read_rows(file, text_field=self.section.text_field)

    @property
    def input_columns(self) -> tuple[str, ...]:
        return (self.section.text_field,)

    def encode(self, row: Mapping[str, Any]) -> Batch:
        """A text as the windows that evaluation reads, the token that ends it among the targets."""
        section, eos_id = self.section, self.tokenizer.eos_id
        text = field(row, section.text_field)
        if not isinstance(text, str):
            raise ValueError(f"field {section.text_field!r} is {type(text).__name__}, not text")
        num_bytes = len(text.encode())  # before the tokenizer, which drops what is not Unicode
        ids = [*(self.tokenizer.begin_ids or (eos_id,)), *self.tokenizer.encode(text), eos_id]
        document = SplitTokens(np.array(ids), np.array([0, len(ids) - 1]), closed=True, num_bytes=num_bytes)
        windows = stream_windows(document, section.seq_len, _stride(section))
        return TextSource(windows, None, len(windows), section.seq_len, eos_id, documents=False).read(0, slice(None))

    def _open(self, corpus: Corpus) -> TextData:
        section, tokenizer = self.section, self.tokenizer
        key = rows_key("aifx.data.corpus", corpus.digest, sha256_of(tokenizer.data), tokenizer.eos_id)
        store = stored_tokens(corpus.tokens_folder(key) / key, corpus, tokenizer)
        how = (section.seq_len, section.packing, section.eval_stride)
        return TextData(self.spec, sha256_of_values("text", store.digest, *how), tokenizer, section, corpus, store)


def text_spec(section: TextSection, tokenizer: Tokenizer | None = None) -> DataSpec:
    """The spec of the batches of `[data]`, with the size of the vocabulary unless only a tokenizer's file knows it.

    Raises ConfigError if `data.vocab_size` is less than the tokenizer's.
    """
    dtypes = {"inputs": "int32", "targets": "int32", "weights": "float32"}
    if section.packing == "documents":
        dtypes |= {"segment_ids": "int32", "positions": "int32"}
    fields = {name: Field((section.seq_len,), dtype, ("seq",)) for name, dtype in dtypes.items()}
    vocab_size = section.vocab_size or VOCAB_SIZES.get(section.tokenizer)
    if tokenizer is not None:
        vocab_size = vocab_size or tokenizer.vocab_size
        check_vocab_size(vocab_size, tokenizer)
    return DataSpec(fields, vocab_size)


def check_vocab_size(vocab_size: int, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if a tokenizer has more tokens than a model of this vocabulary."""
    if vocab_size < tokenizer.text_vocab_size:
        what = f"data.vocab_size = {vocab_size} is less than the tokenizer's {tokenizer.vocab_size}"
        hint = f"aifx train --set data.vocab_size={tokenizer.vocab_size}"
        raise ConfigError(what, "every token needs a row of the embedding", hint)


def _stride(section: TextSection) -> int:
    """Tokens that each window of an evaluation scores."""
    return min(section.eval_stride or section.seq_len, section.seq_len)


def _tokenizer(section: TextSection, project: Project, corpora: Sequence[Corpus], assets: Path) -> Tokenizer:
    kept = assets / TOKENIZER_FILE
    if kept.exists():
        return _load_tokenizer(kept, section)
    for corpus in corpora:
        corpus.warn_of_duplicates()  # once, as the run begins
    is_own = section.tokenizer in OWN_TOKENIZERS
    tokenizer = _trained(section, corpora) if is_own else _load_tokenizer(section.tokenizer_path(project), section)
    assets.mkdir(parents=True, exist_ok=True)
    replace_file(kept, tokenizer.data)
    return tokenizer


def _load_tokenizer(path: Path, section: TextSection) -> Tokenizer:
    return Tokenizer.load(path, ends=section.end_tokens, begin=section.begin_token)


def made_tokenizer(section: TokenSection, texts: Iterable[str], special: Sequence[str] = (END_OF_TEXT,)) -> bytes:
    """The tokenizer.json of one of OWN_TOKENIZERS with these special tokens, which is made of `texts`."""
    if section.tokenizer == "byte":
        return train_tokenizer((), NUM_BYTES + len(special), special)
    if section.tokenizer == "char":
        return character_tokenizer(texts, section.vocab_size, special)
    return train_tokenizer(texts, section.vocab_size or VOCAB_SIZES["bpe"], special)


def _trained(section: TextSection, corpora: Sequence[Corpus]) -> Tokenizer:
    """A tokenizer of the training splits, from the cache where it was trained on the same text before."""
    if section.tokenizer == "byte":
        return Tokenizer(made_tokenizer(section, ()), "bytes")
    is_bpe = section.tokenizer == "bpe"
    how = (section.vocab_size or VOCAB_SIZES["bpe"], WORDS) if is_bpe else (section.vocab_size, CHARACTER)
    cached = cache_path("tokenizers") / rows_key("aifx.data.corpus", *(corpus.digest for corpus in corpora), *how)
    if (data := read_cached(read_checked, cached, "cached tokenizer")) is not None:
        return Tokenizer(bytes(data), str(cached))
    activity = f"training the tokenizer on {', '.join(corpus.names('train') for corpus in corpora)}"
    logger.info(activity)
    expected = [corpus.expected_bytes("train") for corpus in corpora]
    size = None if None in expected else sum(filter(None, expected))
    with report_progress(activity, size, "bytes") as progress:

        def texts() -> Iterator[str]:
            for split, piece in chain.from_iterable(corpus.pieces() for corpus in corpora):
                if split == "train":
                    yield piece.text
                    progress.advance(piece.num_bytes)
            progress.enter("merging pairs of tokens")

        tokenizer = Tokenizer(made_tokenizer(section, texts()), str(cached))
    for corpus in corpora:
        corpus.check_unchanged()
    with writable_folder(cached.parent):
        remove_temporary(cached.parent)
        write_checked(cached, tokenizer.data)
    return tokenizer


def _check_length(split: Split, tokens: SplitTokens, section: TextSection, corpus: Corpus) -> None:
    """Raise DataError for a split that is shorter than one sequence."""
    count = tokens.num_targets
    if count >= section.seq_len:
        return
    what = f"{corpus.names(split)}: the {split} split is shorter than one sequence"
    why = f"it has {count:,} tokens ({tokens.num_bytes:,} bytes) and data.seq_len is {section.seq_len:,}"
    if corpus.part is not None and section.split == "document" and corpus.has(split):
        raise DataError(what, f"{why}; whole documents are held out", "aifx train --set data.split=block")
    more_text = "add text" if split == "train" else f"add text, or change data.{split}_fraction"
    raise DataError(what, why, f"aifx train --set data.seq_len={count}" if count >= 2 else more_text)
