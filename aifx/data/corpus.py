"""The text of a project, divided into splits that share nothing.

`block` takes the documents as one long text and cuts it by bytes: train, then validation, then test. `document` sends
each document to a split by a hash of its content, so that copies of a document always stay together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.data.base import Split
from aifx.data.encoding import SUFFIXES, FileScan, TextFile, report_bad_bytes, undecodable
from aifx.data.files import Piece, check_regular, find_files, read_documents, scan_file
from aifx.data.sections import TextSection

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Corpus:
    """Files by split (those of "train" may hold parts of the others), and a digest of their content and division."""

    files: dict[Split, list[TextFile]]
    section: TextSection
    fractions: dict[Split, float]  # what is held out of the training files
    digest: str
    remarks: tuple[str, ...] = ()  # what a person should know: files without text, bytes that are not UTF-8
    sizes: Mapping[Split, int | None] = field(default_factory=dict)  # bytes of the files; None if text takes more

    def names(self, split: Split) -> str:
        """The files that `split` comes from, for messages."""
        names = [file.name for file in self.files[split] or next(filter(None, self.files.values()), [])]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def expected_bytes(self, *splits: Split) -> int | None:
        """Return an estimate of the text in the splits, to show progress; None if it is unknown before reading."""
        held_out = sum(self.fractions.values())
        shares = {split: self.fractions[split] for split in SPLITS} | {"train": 1 - held_out}
        total = 0.0
        for split in splits:
            size, training = self.sizes.get(split), self.sizes.get("train")
            if size is None or training is None:
                return None
            total += training * shares[split] + (size if split != "train" else 0)
        return round(total)

    def has(self, split: Split) -> bool:
        """Whether the project asks for this split at all."""
        return split == "train" or bool(self.files[split]) or self.fractions[split] > 0

    def pieces(self, *, whole: bool = False) -> Iterator[tuple[Split, Piece]]:
        """All text in the order train, validation, test files; with `whole`, documents are not cut into pieces (other
        than between splits)."""
        yield from self._divided(whole)
        for split in SPLITS[1:]:
            for file in self.files[split]:
                for piece in self._read(file, whole):
                    yield split, piece

    def check_unchanged(self) -> None:
        """Raises DataError if the files no longer hold what the digest was made of."""
        scans = _scan(self.files, self.section)
        if _digest(scans, self.section, self.fractions) != self.digest:
            raise DataError(f"{self.names('train')} changed while it was read", "", "run it again when it is written")

    def _training_files(self, whole: bool) -> Iterator[Piece]:
        for file in self.files["train"]:
            yield from self._read(file, whole)

    def _read(self, file: TextFile, whole: bool) -> Iterator[Piece]:
        return read_documents(file, self.section.text_field, errors=self.section.errors, whole=whole)

    def _divided(self, whole: bool) -> Iterator[tuple[Split, Piece]]:
        pieces = self._training_files(whole)
        if not any(self.fractions.values()):
            return (("train", piece) for piece in pieces)
        if self.section.split == "block":
            total = sum(piece.num_bytes for piece in self._training_files(whole))
            return _by_block(pieces, self._block_ends(total))
        return _by_document(pieces, self._assignment())

    def _block_ends(self, total: int) -> list[tuple[Split, int]]:
        """Where each split ends, in bytes of the joined text."""
        held_out = self.fractions["validation"] + self.fractions["test"]
        return [
            ("train", round(total * (1 - held_out))),
            ("validation", round(total * (1 - self.fractions["test"]))),
            ("test", total),
        ]

    def _assignment(self) -> bytearray:
        """The split of each document of the training files, as an index into SPLITS: one byte a document."""
        assignment = bytearray()
        digest = hashlib.blake2b(digest_size=8)
        for piece in self._training_files(whole=False):
            digest.update(piece.text.encode())
            if piece.closes:
                share = int.from_bytes(digest.digest(), "big") / 2**64
                held_out = share - self.fractions["test"]
                assignment.append(2 if held_out < 0 else 1 if held_out < self.fractions["validation"] else 0)
                digest = hashlib.blake2b(digest_size=8)
        return assignment


def open_corpus(section: TextSection, project: Project) -> Corpus:
    """Find and hash the project's text. Raises DataError for what is missing, empty, not UTF-8 or in two splits."""
    patterns: dict[Split, tuple[str, ...]] = {
        "train": section.train,
        "validation": section.validation,
        "test": section.test,
    }
    found = {split: find_files(patterns[split], project, f"data.{split}") for split in SPLITS}
    scans = _scan(found, section)
    everything = {file: scan for split in SPLITS for file, scan in scans[split].items()}
    empty = [file for file, scan in everything.items() if not scan.num_bytes]
    for split in SPLITS:
        scans[split] = {file: scan for file, scan in scans[split].items() if scan.num_bytes}
        if found[split] and not scans[split]:
            what = f"{', '.join(map(repr, patterns[split]))} of data.{split} matches empty files only"
            raise DataError(what, f"the first of them is {found[split][0].name}", "put text into them")
    _check_apart(scans)
    if section.errors == "strict" and any(scan.bad for scan in everything.values()):
        raise undecodable(everything)
    fractions: dict[Split, float] = {
        "train": 0.0,
        "validation": 0.0 if found["validation"] else section.validation_fraction,
        "test": 0.0 if found["test"] else section.test_fraction,
    }
    return Corpus(
        {split: list(scans[split]) for split in SPLITS},
        section,
        fractions,
        _digest(scans, section, fractions),
        (*_report_empty(empty), *report_bad_bytes(everything, section.errors)),
        _sizes(scans),
    )


def file_corpus(path: Path, section: TextSection) -> Corpus:
    """A corpus whose only split is "test", all of the file at `path`. Raises DataError."""
    name = str(path)
    check_regular(path, name, "a data set is a file", "aifx eval --data FILE")
    if not name.lower().endswith(SUFFIXES):
        what = f"{name}: no reader for {path.suffix or 'a file without suffix'}"
        raise DataError(what, f"a data set of text is {', '.join(SUFFIXES)}", "aifx eval --data FILE.jsonl")
    return _one_split("test", [TextFile(path, name)], section)


def split_corpus(split: Split, section: TextSection, project: Project) -> Corpus | None:
    """A corpus of nothing but the files that the project names for `split`, or None if it names none.

    Raises DataError.
    """
    patterns = {"train": (), "validation": section.validation, "test": section.test}[split]
    return _one_split(split, find_files(patterns, project, f"data.{split}"), section) if patterns else None


def _one_split(split: Split, found: list[TextFile], section: TextSection) -> Corpus:
    files: dict[Split, list[TextFile]] = {other: found if other == split else [] for other in SPLITS}
    scans = _scan(files, section)
    if section.errors == "strict" and any(scan.bad for scan in scans[split].values()):
        raise undecodable(scans[split])
    fractions: dict[Split, float] = dict.fromkeys(SPLITS, 0.0)
    remarks = report_bad_bytes(scans[split], section.errors)
    return Corpus(files, section, fractions, _digest(scans, section, fractions), tuple(remarks), _sizes(scans))


def _scan(files: Mapping[Split, Sequence[TextFile]], section: TextSection) -> dict[Split, dict[TextFile, FileScan]]:
    return {split: {file: scan_file(file, section.text_field) for file in files[split]} for split in SPLITS}


def _sizes(scans: Mapping[Split, Mapping[TextFile, FileScan]]) -> dict[Split, int | None]:
    return {
        split: None if any(file.format == ".parquet" for file in found) else sum(s.num_bytes for s in found.values())
        for split, found in scans.items()
    }


def _report_empty(files: Sequence[TextFile]) -> Iterator[str]:
    if files:
        names = ", ".join(file.name for file in files[:3])
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        yield f"skipped {len(files)} empty file{'s' * (len(files) > 1)}: {names}{more}"


def _check_apart(scans: Mapping[Split, Mapping[TextFile, FileScan]]) -> None:
    """Raises DataError for a file, or a copy of one under another name, in two splits."""
    seen: dict[str, tuple[Split, TextFile]] = {}
    for split in SPLITS:
        for file, scan in scans[split].items():
            other, first = seen.setdefault(scan.digest, (split, file))
            if other != split:
                same = first.path.resolve() == file.path.resolve()
                raise DataError(
                    f"{file.name} is named for both data.{other} and data.{split}"
                    if same
                    else f"{first.name} of data.{other} and {file.name} of data.{split} are the same, byte for byte",
                    "what is trained on must not be measured on",
                    f"name the files of data.{other} so that they leave it out",
                )


def _digest(
    scans: Mapping[Split, Mapping[TextFile, FileScan]], section: TextSection, fractions: dict[Split, float]
) -> str:
    how = f"{section.split} {fractions} {section.text_field} {section.errors}"
    digest = hashlib.sha256(f"corpus 2 {how}\n".encode())
    for split in SPLITS:
        for file, scan in scans[split].items():
            digest.update(f"{split} {file.format} {scan.digest}\n".encode())
    return digest.hexdigest()


def _by_block(pieces: Iterator[Piece], ends: list[tuple[Split, int]]) -> Iterator[tuple[Split, Piece]]:
    """Cuts the joined text at `ends`; a cut inside a character moves before it."""
    remaining = iter(ends)
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
