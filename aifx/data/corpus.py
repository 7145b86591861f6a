"""The text of a project, of files or of a version, divided into splits that share nothing; and their tokens.

`block` takes the documents as one long text and cuts it by bytes: train, then validation, then test. `document` sends
each document to a split by a hash of its content, so that copies of a document always stay together. Rows of a version
go where its column `_split` says, if it has one; with `document`, those of a duplicate cluster stay together.

The tokens are in a token store, a row cache (`aifx.data.row_cache`). That of files is in the cache, that of a data set
beside it. Its manifest says of each split whether it is closed, and its bytes. For each split it holds

    <split>.tokens.npy      uint16 or uint32 [n]: eos, a document, eos, a document, ..., and eos if the last ends here
    <split>.documents.npy   int64 [documents + 1]: positions of the eos before each document, and of the end of the last
    <split>.sizes.npy       uint32 [n]: bytes of the text of each token. Only of the splits that are held out, and only
                            if the tokenizer is not byte-level: otherwise a token's id says its size

A block of an array is verified when it is first read. A damaged store is built again, also while training reads it.
The folder may also hold packings that can be made again (`aifx.data.text`): no part of the artefact, and deleted
with it.
"""

from __future__ import annotations

import logging
import os
from array import array
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from tokenizers import Encoding

from aifx.core.digests import Hash64, Sha256, sha256_of
from aifx.core.errors import DataError
from aifx.core.plurals import counted, some_names
from aifx.core.progress import report_progress
from aifx.core.project import Project, cache_path
from aifx.data.file_index import ImplicitVersion, changed_file, scans_of
from aifx.data.names import CLUSTER, SPLIT
from aifx.data.readers.documents import Piece, in_pieces
from aifx.data.readers.encodings import FileScan, report_bad_bytes, undecodable
from aifx.data.readers.parquet import column_bytes
from aifx.data.readers.sources import SourceFile
from aifx.data.row_cache import SUFFIX, ArrayWriter, BlockArray, cached_arrays, write_array
from aifx.data.splits import SPLITS, Split, split_of
from aifx.data.tokenizer import Tokenizer, text_sizes

if TYPE_CHECKING:  # what these import decides no row, and a change of it makes no cache again
    from aifx.data.sections import DocumentSection, TextSection
    from aifx.data.versions.catalog import DatasetPart

logger = logging.getLogger(__name__)

Files: TypeAlias = Mapping[Split, Mapping[SourceFile, FileScan]]
NO_FILES: Files = {split: {} for split in SPLITS}

Division: TypeAlias = Literal["column", "block", "cluster", "content"]
"""The way to decide the split of a document: by the column `_split`, its place, its duplicate cluster, or its text."""


@dataclass(frozen=True)
class Sources:
    """Files by split, or a version of a data set, and what is held out of the training files or the rows.

    Attributes:
        files: with what a pass over each found; none of a version.
        fractions: shares that are held out, 0 for a split that has files, or if the rows of a version name theirs.
        file_versions: the files by the key that names them, those that are empty too.
    """

    files: Files
    section: DocumentSection
    fractions: Mapping[Split, float]
    part: DatasetPart | None = None
    file_versions: Mapping[str, ImplicitVersion] = field(default_factory=dict)

    def has_column(self, name: str) -> bool:
        """Whether it is a version with this column."""
        return self.part is not None and self.part.has_column(name)

    def names(self, split: Split) -> str:
        """The source of `split`, for messages."""
        if self.part is not None:
            return self.part.reference
        files = self.files[split] or next(filter(None, self.files.values()), {})
        return some_names([file.name for file in files])

    def has(self, split: Split) -> bool:
        """Whether the project asks for this split at all."""
        return split == "train" or bool(self.files[split]) or self.fractions[split] > 0

    def no_split(self, split: Split) -> DataError:
        """The error for a split that has nothing, with a command that gives it something."""
        what = f"{self.names('train')}: no {split} split"
        if self.part is not None and self.has_column(SPLIT):
            hint = f"aifx data split {self.part.manifest.name}"
            return DataError(what, f"its column {SPLIT} names no row for it", hint)
        why = f"data.{split}_fraction {'holds nothing out' if self.fractions[split] else 'is 0'}"
        if self.part is None:
            why += f" and data.{split} names no files"
        return DataError(what, why, f"aifx train --set data.{split}_fraction=0.1")

    def split_of(self, content: bytes, row: Mapping[str, Any]) -> Split:
        """The split of a document of the training files or a row of the version: one for equal ones, or a cluster."""
        if self.part is not None and self.has_column(SPLIT):
            return self.part.split_of(row[SPLIT])
        cluster = row[CLUSTER] if self.has_column(CLUSTER) else None
        return split_of(Hash64(str(cluster).encode() if cluster else content).digest(), self.fractions)

    def warn_of_duplicates(self) -> None:
        """Log a warning if near-duplicates of training rows may be held out."""
        if self.part is not None:
            self.part.warn_of_duplicates(*self.fractions.values())

    def check_unchanged(self) -> None:
        """Raise DataError if the files no longer hold what the digest was made of. A version never changes."""
        field = _text_field(self.section)
        for scans in self.files.values():
            if (file := changed_file(scans, field)) is not None:
                raise DataError(f"{file.name} changed while it was read", "", "run it again when it is written")


@dataclass(frozen=True)
class Corpus(Sources):
    """Text."""

    section: TextSection

    @property
    def division(self) -> Division:
        if self.has_column(SPLIT):
            return "column"
        if self.section.split == "block":
            return "block"
        return "cluster" if self.has_column(CLUSTER) else "content"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the text and how it is divided."""
        section = self.section
        if self.part is not None:
            fractions = None if self.division == "column" else self.fractions
            how = f"{self.division} {fractions} {section.text_field}"
            return sha256_of(f"version 1 {self.part.manifest.sha256} {how}\n")
        how = f"{section.split} {self.fractions} {section.text_field} {section.errors}"
        digest = Sha256(f"corpus 2 {how}\n".encode())
        for split in SPLITS:
            for file, scan in self.files[split].items():
                digest.update(f"{split} {file.suffix} {scan.digest}\n".encode())
        return digest.hexdigest()

    def expected_bytes(self, *splits: Split) -> int | None:
        """Return an estimate of the text in the splits, to show progress; None if it is unknown before reading."""
        sizes = {split: sum(scan.num_bytes for scan in self.files[split].values()) for split in SPLITS}
        if self.part is not None:
            shards, field = self.part.version.shards, self.section.text_field
            sizes["train"] = sum(column_bytes(path, str(path), field) for path in shards)
        read = [file for split in ("train", *splits) for file in self.files[split]]
        if (self.division == "column" and len(splits) < len(SPLITS)) or any(file.format == "parquet" for file in read):
            return None
        shares = {**self.fractions, "train": -sum(self.fractions.values())}
        return round(sum(sizes[split] + sizes["train"] * shares[split] for split in splits))

    def pieces(self, *, whole: bool = False) -> Iterator[tuple[Split, Piece]]:
        """All text: train, validation, test. With `whole`, documents are cut between splits only."""
        is_held_out = any(self.fractions.values())
        if self.division == "column" or (is_held_out and self.section.split == "document"):
            yield from self._by_document(whole)
        elif is_held_out:
            yield from by_block(self._read("train", whole), self._training_bytes, self.fractions)
        else:
            yield from (("train", piece) for piece in self._read("train", whole))
        for split in SPLITS[1:]:
            for piece in self._read(split, whole):
                yield split, piece

    def warn_of_duplicates(self) -> None:
        if self.part is None or self.division != "block":
            super().warn_of_duplicates()
        elif any(self.fractions.values()) and (rows := self.part.manifest.rows) > 1:
            logger.warning(
                f'{self.part.reference}: data.split = "block" divides {rows:,} rows by their place, so copies of '
                'training rows may be in the held-out splits; data.split = "document" keeps copies together'
            )

    def tokens_folder(self, name: str) -> Path:
        """The folder for the token store `name`."""
        return cache_path("tokens") if self.part is None else self.part.tokens_folder(name)

    def _read(self, split: Split, whole: bool) -> Iterator[Piece]:
        for file in self.files[split]:
            yield from self.section.read(file, whole=whole)
        for text, _ in self._rows() if split == "train" else ():
            yield from in_pieces(iter((text,)), whole)

    @cached_property
    def _training_bytes(self) -> int:
        """Bytes of the text that is divided, UTF-8."""
        files = self.files["train"]
        if self.part is None and all(file.format == "text" and not scan.num_bad for file, scan in files.items()):
            return sum(scan.num_bytes for scan in files.values())
        return sum(piece.num_bytes for piece in self._read("train", whole=False))

    def _by_document(self, whole: bool) -> Iterator[tuple[Split, Piece]]:
        for file in self.files["train"]:
            if file.format == "text":  # one document, of any size: it is read once for its hash
                digest = Hash64()
                for piece in self.section.read(file):
                    digest.update(piece.text.encode())
                split = split_of(digest.digest(), self.fractions)
                yield from ((split, piece) for piece in self.section.read(file, whole=whole))
            else:
                for document in self.section.read(file, whole=True):
                    split = self.split_of(document.text.encode(), {})
                    yield from ((split, piece) for piece in in_pieces(iter((document.text,)), whole))
        for text, row in self._rows():
            split = self.split_of(text.encode(), row)
            yield from ((split, piece) for piece in in_pieces(iter((text,)), whole))

    def _rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each row of the version that has a text: the text, and its split and cluster. Raises DataError."""
        if self.part is None:
            return
        field = self.section.text_field
        for path, batch in self.part.batches([field, *filter(self.part.has_column, (SPLIT, CLUSTER))]):
            what = f"{self.part.reference}: {path.name}: column {field!r}"
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(f"{what} is not UTF-8", str(error), "aifx data clean") from None
            for row in rows:
                if (text := row[field]) is None or text == "":
                    continue
                if not isinstance(text, str):
                    hint = "name a column of text: data.text_field"
                    raise DataError(f"{what} is not text", f"it holds {type(text).__name__}", hint)
                yield text, row


def open_corpora(section: TextSection, project: Project) -> list[Corpus]:
    """The corpus of the project's files, that of a version, or those of the parts of a mix.

    Raises DataError for text that is missing, empty, not UTF-8 or in two splits, UsageError for a missing version.
    """
    if parts := section.open_parts(project):
        return [version_corpus(part, section) for part in parts]
    return [corpus_of({split: section.find(split, project) for split in SPLITS}, section, project)]


def version_corpus(part: DatasetPart, section: TextSection) -> Corpus:
    """The rows of a version, each of which is a document."""
    return Corpus(NO_FILES, section, held_out(section, NO_FILES, part), part)


def held_out(
    section: DocumentSection, files: Mapping[Split, Collection[SourceFile]], part: DatasetPart | None = None
) -> dict[Split, float]:
    """The shares of the training files, or of the rows of a version, for splits that have no files of their own."""
    fractions: dict[Split, float] = dict.fromkeys(SPLITS, 0.0)
    if files.get("train") or (part is not None and not part.has_column(SPLIT)):
        fractions |= {"validation": section.validation_fraction, "test": section.test_fraction}
    return {split: 0.0 if files.get(split) else fraction for split, fraction in fractions.items()}


def corpus_of(
    files: Mapping[Split, Collection[SourceFile]], section: TextSection, project: Project | None = None
) -> Corpus:
    """The corpus of these files. Logs which hold no text, or bytes that are not UTF-8. Raises DataError."""
    scans = scans_by_split(files, section, project)
    everything = {file: scan for found in scans.values() for file, scan in found.items()}
    filled = {split: {file: scan for file, scan in scans[split].items() if scan.num_bytes} for split in SPLITS}
    for split in SPLITS:
        if scans[split] and not filled[split]:
            what = f"{', '.join(map(repr, getattr(section, split)))} of data.{split} matches empty files only"
            raise DataError(what, f"the first of them is {next(iter(scans[split])).name}", "put text into them")
    check_apart(filled)
    if section.errors == "strict" and any(scan.where for scan in everything.values()):
        raise undecodable(everything)
    if empty := [file for file, scan in everything.items() if not scan.num_bytes]:
        names = some_names([file.name for file in empty])
        logger.info(f"skipped {counted(len(empty), 'empty file')}: {names}")
    for line in report_bad_bytes(everything, section.errors):
        logger.info(line)
    return Corpus(filled, section, held_out(section, files), file_versions=file_versions_of(scans))


def scans_by_split(
    files: Mapping[Split, Collection[SourceFile]], section: DocumentSection, project: Project | None
) -> Files:
    """The scan of each file, from the index of a project. Raises DataError."""
    found = scans_of(chain.from_iterable(files.values()), _text_field(section), project)
    return {split: {file: found[file] for file in files.get(split, ())} for split in SPLITS}


def file_versions_of(scans: Files) -> dict[str, ImplicitVersion]:
    """The files by the key that names them."""
    keys = {f"data.{split}": found for split, found in scans.items() if found}
    return {key: ImplicitVersion(key, found) for key, found in keys.items()}


def _text_field(section: DocumentSection) -> str | None:
    """The field that holds the text; None for chats, whose digest is that of the bytes of their files."""
    return getattr(section, "text_field", None)


def check_apart(scans: Files) -> None:
    """Raise DataError for a file, or a copy of one under another name, in two splits."""
    seen: dict[str, tuple[Split, SourceFile]] = {}
    for split in SPLITS:
        for file, scan in scans[split].items():
            other, first = seen.setdefault(scan.digest, (split, file))
            if other != split:
                what = f"{first.name} of data.{other} and {file.name} of data.{split} are the same, byte for byte"
                if first.path.resolve() == file.path.resolve():
                    what = f"{file.name} is named for both data.{other} and data.{split}"
                hint = f"name the files of data.{other} so that they leave it out"
                raise DataError(what, "what is trained on must not be measured on", hint)


def by_block(pieces: Iterator[Piece], total: int, fractions: Mapping[Split, float]) -> Iterator[tuple[Split, Piece]]:
    """Cut the joined text of `total` bytes where each split ends; a cut inside a character moves before it."""
    test = fractions["test"]
    shares: dict[Split, float] = {"train": 1 - (fractions["validation"] + test), "validation": 1 - test, "test": 1}
    remaining = iter([(split, round(total * shares[split])) for split in SPLITS])
    split, end = next(remaining)
    position = 0
    for piece in pieces:
        size = piece.num_bytes
        while position + size > end:
            data = piece.text.encode()
            cut = end - position
            while cut > 0 and data[cut] & 0xC0 == 0x80:  # a continuation byte of UTF-8
                cut -= 1
            if cut > 0:
                yield split, Piece(data[:cut].decode(), closes=False)
                piece = Piece(data[cut:].decode(), piece.closes)
            position += cut
            size -= cut
            split, end = next(remaining)
        yield split, piece
        position += size


# A batch has enough pieces a core that its last ones cost little, and a bound on the memory of its encodings.
BATCH_CHARACTERS = min(os.cpu_count() or 1, 32) << 20
AHEAD = 2  # batches that are encoded at a time, so that no core waits between them


@dataclass(frozen=True)
class SplitTokens:
    """One split of a store.

    Attributes:
        tokens: `[n]`, beginning with eos: each after the first is a target with a token before it.
        documents: `[documents + 1]`, positions of the eos before each document and of the end of the last.
        closed: whether the last document ends here; otherwise the next split cut it.
        num_bytes: of the text, UTF-8.
        sizes: `[n]`, bytes of the text of each token; None if the store does not have them.
        bytes_by_id: `[vocab_size]`, the bytes of each token if its id says them.
    """

    tokens: np.ndarray | BlockArray
    documents: np.ndarray | BlockArray
    closed: bool
    num_bytes: int
    sizes: np.ndarray | BlockArray | None = None
    bytes_by_id: np.ndarray | None = None

    @property
    def num_targets(self) -> int:
        """The tokens of the text, and one for each document that ends here."""
        return max(len(self.tokens) - 1, 0)

    def target_bytes(self) -> np.ndarray:
        """Bytes of the text of each token, as `text_bytes` counts them: `[n]`."""
        if self.bytes_by_id is not None:
            return np.asarray(self.bytes_by_id[self.tokens[:]])
        if self.sizes is not None:
            return np.asarray(self.sizes[:])
        return np.diff(self.num_bytes * np.arange(-1, self.num_targets + 1) // max(self.num_targets, 1))

    def text_bytes(self, start: int, stop: int) -> int:
        """Bytes of the text of the targets from `start` (1 or more) up to `stop`.

        If the sizes are not known, all targets have an equal share. Either way, those of all targets add up to
        `num_bytes`.
        """
        if self.bytes_by_id is not None:
            return int(self.bytes_by_id[self.tokens[start:stop]].sum(dtype=np.int64))
        if self.sizes is not None:
            return int(self.sizes[start:stop].sum(dtype=np.int64))
        first, last = (self.num_bytes * (place - 1) // self.num_targets for place in (start, stop))
        return last - first


@dataclass(frozen=True)
class TokenStore:
    """An opened store.

    Attributes:
        digest: of the tokens and the sizes of their texts.
    """

    path: Path
    digest: str
    splits: dict[Split, SplitTokens]


def stored_tokens(path: Path, corpus: Corpus, tokenizer: Tokenizer, *, whole: bool = False) -> TokenStore:
    """The tokens of `corpus` from the store at `path`, which is built if it is missing or damaged.

    Another process may build the same store at the same time.

    Args:
        whole: verify all blocks now, and not each when it is read.

    Raises DataError if the text changes meanwhile, EnvironmentFault if the store cannot be put in place.
    """
    artifact, arrays = cached_arrays(path, "token store", partial(_build, corpus, tokenizer), whole=whole)
    splits: dict[Split, SplitTokens] = {}
    for split in SPLITS:
        tokens, documents = arrays[f"{split}.tokens"], arrays[f"{split}.documents"]
        splits[split] = SplitTokens(tokens, documents, sizes=arrays.get(f"{split}.sizes"), **artifact.content[split])
    return TokenStore(path, artifact.digest, splits)


def _build(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Encode `corpus` into the arrays of a store. Returns the facts of each split for its manifest."""
    with ExitStack() as opened:
        writers = {split: _SplitWriter(folder, split, tokenizer, opened) for split in SPLITS}
        activity = f"tokenizing {corpus.names('train')}"
        logger.info(activity)
        with report_progress(activity, corpus.expected_bytes(*SPLITS), "bytes") as progress:
            for split, piece, encoding in _encoded(corpus, tokenizer):
                writers[split].write(piece, encoding)
                progress.advance(piece.num_bytes)
        splits: dict[str, Any] = {split: writer.finish() for split, writer in writers.items()}
        corpus.check_unchanged()
        return splits


def _encoded(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[tuple[Split, Piece, Encoding]]:
    """Each piece with its encoding, which has offsets if its split has sizes.

    Threads keep the encoder, which works outside the interpreter's lock, busy with the batches ahead while this one
    takes the ids of those that are done.
    """
    pending: deque[Future[list[tuple[Split, Piece, Encoding]]]] = deque()

    def finished() -> Iterator[tuple[Split, Piece, Encoding]]:
        encoded = pending.popleft().result()
        while encoded:
            yield encoded.pop()  # so that each is freed when it was taken

    with ThreadPoolExecutor(AHEAD, "encode") as pool:
        for batch in _batches(corpus, tokenizer):
            pending.append(pool.submit(_encode, batch, tokenizer))
            if len(pending) > AHEAD:
                yield from finished()
        while pending:
            yield from finished()


def _encode(batch: list[tuple[Split, Piece]], tokenizer: Tokenizer) -> list[tuple[Split, Piece, Encoding]]:
    """A batch's pieces with their encodings, the last first. Those with offsets take more than twice the time."""
    needed = [_has_sizes(split, tokenizer) for split, _ in batch]
    made = {}
    for offsets in set(needed):
        texts = [piece.text for (_, piece), own in zip(batch, needed, strict=True) if own == offsets]
        made[offsets] = iter(tokenizer.encode_batch(texts, offsets=offsets))
    return [(*item, next(made[offsets])) for item, offsets in zip(batch, needed, strict=True)][::-1]


def _has_sizes(split: Split, tokenizer: Tokenizer) -> bool:
    """Whether the store keeps the sizes of the tokens of a split."""
    return split != "train" and not tokenizer.is_byte_level


def _batches(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[list[tuple[Split, Piece]]]:
    """Batches of pieces, those of long text without a place to cut in parts."""
    batch: list[tuple[Split, Piece]] = []
    size = 0
    for split, piece in corpus.pieces(whole=not tokenizer.can_cut):
        *parts, last = tokenizer.divide(piece.text)
        pieces = [*(Piece(part, closes=False) for part in parts), Piece(last, piece.closes) if parts else piece]
        for part in pieces:
            batch.append((split, part))
            size += len(part.text)
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


class _SplitWriter:
    """Writes the arrays of a split as their pieces come. `opened` closes their files."""

    def __init__(self, folder: Path, split: Split, tokenizer: Tokenizer, opened: ExitStack) -> None:
        def writer(name: str, dtype: type[np.unsignedinteger[Any]]) -> ArrayWriter:
            return opened.enter_context(closing(ArrayWriter(folder / f"{split}.{name}{SUFFIX}", np.dtype(dtype))))

        self._documents_path = folder / f"{split}.documents{SUFFIX}"
        self._tokens = writer("tokens", np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._sizes = writer("sizes", np.uint32) if _has_sizes(split, tokenizer) else None
        self._eos_id = tokenizer.eos_id
        self._documents = array("q")
        self._num_bytes = 0
        self._without_token = 0  # bytes of text of which the tokenizer made nothing
        self._open = False  # inside a document

    def write(self, piece: Piece, encoding: Encoding) -> None:
        if not self._open:
            self._documents.append(self._tokens.length)
            self._end()
        ids = encoding.ids
        self._tokens.append(np.fromiter(ids, self._tokens.dtype, len(ids)))
        self._num_bytes += piece.num_bytes
        if not ids:
            self._without_token += piece.num_bytes
        elif self._sizes is not None:
            self._sizes.append(text_sizes(piece.text, encoding))
        self._open = not piece.closes

    def finish(self) -> dict[str, Any]:
        closed = not self._open and self._tokens.length > 0
        self._documents.append(self._tokens.length)
        if closed:
            self._end()
        for writer in filter(None, (self._tokens, self._sizes)):
            writer.finish()
        write_array(self._documents_path, np.frombuffer(self._documents, np.int64))
        return {"closed": closed, "num_bytes": self._num_bytes - self._without_token}

    def _end(self) -> None:
        """Append an eos. Text without a token counts with the eos that ends it."""
        self._tokens.append(np.array([self._eos_id]))
        if self._sizes is not None:
            self._sizes.append(np.array([self._without_token]))
        self._without_token = 0
