"""The text of a project, divided into splits that share nothing.

`block` takes the documents as one long text and cuts it by bytes: train, then validation, then test. `document` sends
each document to a split by a hash of its content, so that copies of a document always stay together.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeAlias

from aifx.core.digests import Hash64, Sha256
from aifx.core.errors import DataError
from aifx.core.project import Project, cache_path
from aifx.data.file_index import changed_file, scans_of
from aifx.data.readers.documents import READABLE, Piece, find_files, has_reader, read_documents
from aifx.data.readers.encodings import FileScan, report_bad_bytes, undecodable
from aifx.data.readers.sources import SourceFile, check_regular, local_file
from aifx.data.sections import TextSection
from aifx.data.splits import SPLITS, Split, split_of

logger = logging.getLogger(__name__)

Files: TypeAlias = Mapping[Split, Mapping[SourceFile, FileScan]]


class TextCorpus(Protocol):
    """Text, divided into splits."""

    @property
    def digest(self) -> str:
        """SHA-256 over the text and how it is divided."""

    def names(self, split: Split) -> str:
        """Where `split` comes from, for messages."""

    def expected_bytes(self, *splits: Split) -> int | None:
        """Return an estimate of the text in the splits, to show progress; None if it is unknown before reading."""

    def has(self, split: Split) -> bool:
        """Whether the project asks for this split."""

    def why_missing(self, split: Split) -> tuple[str, str]:
        """Why there is no text in a split, and a command that gives it some."""

    def pieces(self, *, whole: bool = False) -> Iterator[tuple[Split, Piece]]:
        """All text, the pieces of each split in order. With `whole`, documents are cut between splits only."""

    def check_unchanged(self) -> None:
        """Raises DataError if the text is no longer what the digest was made of."""

    def tokens_folder(self, name: str) -> Path:
        """The folder for the token store `name`."""


@dataclass(frozen=True)
class Corpus:
    """Text in files by split; those of "train" may hold parts of the others."""

    files: Files
    section: TextSection
    fractions: Mapping[Split, float]  # what is held out of the training files

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the content of the files and how it is divided."""
        section = self.section
        how = f"{section.split} {self.fractions} {section.text_field} {section.errors}"
        digest = Sha256(f"corpus 2 {how}\n".encode())
        for split in SPLITS:
            for file, scan in self.files[split].items():
                digest.update(f"{split} {file.suffix} {scan.digest}\n".encode())
        return digest.hexdigest()

    def names(self, split: Split) -> str:
        """The files that `split` comes from, for messages."""
        return _listed(self.files[split] or next(filter(None, self.files.values()), {}))

    def expected_bytes(self, *splits: Split) -> int | None:
        """Return an estimate of the text in the splits, to show progress; None if it is unknown before reading."""
        if any(file.format == "parquet" for split in ("train", *splits) for file in self.files[split]):
            return None
        sizes = {split: sum(scan.num_bytes for scan in self.files[split].values()) for split in SPLITS}
        shares = {**self.fractions, "train": -sum(self.fractions.values())}
        return round(sum(sizes[split] + sizes["train"] * shares[split] for split in splits))

    def has(self, split: Split) -> bool:
        """Whether the project asks for this split at all."""
        return split == "train" or bool(self.files[split]) or self.fractions[split] > 0

    def why_missing(self, split: Split) -> tuple[str, str]:
        why = f"data.{split}_fraction is 0 and data.{split} names no files"
        return why, f"aifx train --set data.{split}_fraction=0.1"

    def pieces(self, *, whole: bool = False) -> Iterator[tuple[Split, Piece]]:
        """All text: train, validation, test. With `whole`, documents are cut between splits only."""
        yield from self._divided(whole)
        for split in SPLITS[1:]:
            for piece in self._read(split, whole):
                yield split, piece

    def check_unchanged(self) -> None:
        """Raises DataError if the files no longer hold what the digest was made of."""
        if any(changed_file(scans, self.section.text_field) for scans in self.files.values()):
            raise DataError(f"{self.names('train')} changed while it was read", "", "run it again when it is written")

    def _read(self, split: Split, whole: bool) -> Iterator[Piece]:
        for file in self.files[split]:
            yield from read_documents(file, self.section.text_field, errors=self.section.errors, whole=whole)

    def _divided(self, whole: bool) -> Iterator[tuple[Split, Piece]]:
        pieces = self._read("train", whole)
        if not any(self.fractions.values()):
            return (("train", piece) for piece in pieces)
        if self.section.split == "document":
            return _by_document(pieces, self._assignment())
        return by_block(pieces, self._training_bytes(), self.fractions)

    def _training_bytes(self) -> int:
        """Of the text of the training files, UTF-8."""
        files = self.files["train"]
        if all(file.format == "text" and not scan.num_bad for file, scan in files.items()):
            return sum(scan.num_bytes for scan in files.values())
        return sum(piece.num_bytes for piece in self._read("train", whole=False))

    def _assignment(self) -> bytearray:
        """The split of each document of the training files, as an index into SPLITS: one byte a document."""
        assignment = bytearray()
        digest = Hash64()
        for piece in self._read("train", whole=False):
            digest.update(piece.text.encode())
            if piece.closes:
                assignment.append(SPLITS.index(split_of(digest.digest(), self.fractions)))
                digest = Hash64()
        return assignment

    def tokens_folder(self, name: str) -> Path:
        return cache_path("tokens")


def open_corpus(section: TextSection, project: Project) -> Corpus:
    """Find and hash the project's text. Raises DataError for what is missing, empty, not UTF-8 or in two splits."""
    files = {split: find_files(getattr(section, split), project, f"data.{split}") for split in SPLITS}
    held_out = {"train": 0.0, "validation": section.validation_fraction, "test": section.test_fraction}
    fractions = {split: 0.0 if files[split] else held_out[split] for split in SPLITS}
    return _opened(files, section, fractions, project)


def file_corpus(path: Path, section: TextSection) -> Corpus:
    """A corpus whose only split is "test", all of the file at `path`. Raises DataError."""
    file = local_file(path)
    check_regular(path, file.name, "a data set is a file", "aifx eval --data FILE")
    if not has_reader(file):
        what = f"{file.name}: no reader for {path.suffix or 'a file without suffix'}"
        raise DataError(what, f"a data set of text is {READABLE}", "aifx eval --data FILE.jsonl")
    return _opened({"test": [file]}, section)


def split_corpus(split: Split, section: TextSection, project: Project) -> Corpus | None:
    """A corpus of the files that the project names for `split`, or None if it names none. Raises DataError."""
    patterns = () if split == "train" else getattr(section, split)
    if not patterns:
        return None
    return _opened({split: find_files(patterns, project, f"data.{split}")}, section, project=project)


def _opened(
    files: Mapping[Split, Collection[SourceFile]],
    section: TextSection,
    fractions: Mapping[Split, float] | None = None,
    project: Project | None = None,
) -> Corpus:
    """The corpus of these files. Logs which hold no text, or bytes that are not UTF-8. Raises DataError."""
    found = scans_of(chain.from_iterable(files.values()), section.text_field, project)
    scans = {split: {file: found[file] for file in files.get(split, ())} for split in SPLITS}
    everything = {file: scan for found in scans.values() for file, scan in found.items()}
    filled = {split: {file: scan for file, scan in scans[split].items() if scan.num_bytes} for split in SPLITS}
    for split in SPLITS:
        if scans[split] and not filled[split]:
            what = f"{', '.join(map(repr, getattr(section, split)))} of data.{split} matches empty files only"
            raise DataError(what, f"the first of them is {next(iter(scans[split])).name}", "put text into them")
    _check_apart(filled)
    if section.errors == "strict" and any(scan.where for scan in everything.values()):
        raise undecodable(everything)
    if empty := [file for file, scan in everything.items() if not scan.num_bytes]:
        logger.info(f"skipped {len(empty)} empty file{'s' * (len(empty) > 1)}: {_listed(empty)}")
    for line in report_bad_bytes(everything, section.errors):
        logger.info(line)
    return Corpus(filled, section, fractions or dict.fromkeys(SPLITS, 0.0))


def _listed(files: Collection[SourceFile]) -> str:
    """The names of the first files, and how many more there are."""
    return ", ".join(file.name for file in list(files)[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _check_apart(scans: Files) -> None:
    """Raises DataError for a file, or a copy of one under another name, in two splits."""
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


def _by_document(pieces: Iterator[Piece], assignment: bytearray) -> Iterator[tuple[Split, Piece]]:
    document = 0
    for piece in pieces:
        yield SPLITS[assignment[document]], piece
        document += piece.closes
