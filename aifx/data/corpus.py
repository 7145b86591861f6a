"""The text of a project, divided into splits that share nothing: files, or a version of a data set.

`block` takes the documents as one long text and cuts it by bytes: train, then validation, then test. `document` sends
each document to a split by a hash of its content, so that copies of a document always stay together. Rows of a version
go where its column `_split` says, if it has one; with `document`, those of a duplicate cluster stay together.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aifx.core.digests import Hash64, Sha256, sha256_of
from aifx.core.errors import DataError
from aifx.core.plurals import counted, some_names
from aifx.core.project import Project, cache_path
from aifx.data.file_index import ImplicitVersion, changed_file, scans_of
from aifx.data.names import CLUSTER, SPLIT
from aifx.data.readers.documents import Piece, in_pieces
from aifx.data.readers.encodings import FileScan, report_bad_bytes, undecodable
from aifx.data.readers.parquet import column_bytes
from aifx.data.readers.sources import SourceFile
from aifx.data.splits import SPLITS, Split, split_of

if TYPE_CHECKING:  # what these import decides no row, and a change of it makes no cache again
    from aifx.data.sections import DocumentSection, TextSection
    from aifx.data.versions.parts import DatasetPart

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
