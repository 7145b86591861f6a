"""Text on disk: which files a project names, and the documents in them.

A document is text that belongs together: a .txt or .md file, a row of a .jsonl, .csv or .parquet file, a web page.
Documents come in pieces so that one of any length needs little memory; `find_cut` says where a piece may end.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.project import Project
from aifx.data.names import Kind
from aifx.data.readers import web
from aifx.data.readers.encodings import DecodeErrors, FileScan, decode_blocks, scan_text
from aifx.data.readers.formats import KINDS, PAGES, SUFFIXES
from aifx.data.readers.parquet import read_texts, scan_texts
from aifx.data.readers.rows import Row, read_rows
from aifx.data.readers.sources import SourceFile, check_regular, glob_paths, list_sources, local_file

PIECE_CHARACTERS = 1 << 15
# Before a single space between two marks, a newline between a letter or digit and a mark, a stop between two letters.
_CUT = re.compile(
    r"[ \n,.;:!?。，、！？；：](?=\S)"
    r"(?:(?<=\S )|(?<=[^\W_]\n)|(?<=[^\W\d_][,.;:!?。，、！？；：])(?=[^\W\d_]))"
)


@dataclass(frozen=True)
class Piece:
    """A part of a document. `closes` marks the document's last piece."""

    text: str
    closes: bool

    @cached_property
    def num_bytes(self) -> int:
        """The bytes of its text in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())


def find_files(patterns: Sequence[str], project: Project, key: str, kind: Kind = "text") -> list[SourceFile]:
    """The files that `patterns` of the configuration key `key` name, those of one pattern sorted, each once.

    Raises DataError for a pattern that names none, a folder, or a file of a format that the kind of data does not take.
    """
    found: dict[str, SourceFile] = {}
    folders: dict[str, str] = {}
    for pattern in patterns:
        for file in _find(pattern, project, key, kind):
            found.setdefault(_real_path(file.location, folders), file)
    return list(found.values())


def _real_path(path: str, folders: dict[str, str]) -> str:
    """The path without links. `folders` has those of folders asked for before: one may hold 100,000 files."""
    if os.path.islink(path):
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)


def _find(pattern: str, project: Project, key: str, kind: Kind) -> list[SourceFile]:
    if "://" in pattern:
        return _find_remote(pattern, project, key, kind)
    suffix = _suffixes(kind)[0]
    is_glob = glob.has_magic(pattern)
    names = sorted(glob_paths(pattern, project.root))
    if not names:
        what = f"no file matches {pattern!r} of {key}" if is_glob else f"no file {pattern!r}, which {key} names"
        raise DataError(what, f"looked in {project.root}", f"change {key} in aifx.toml, then: aifx config check")
    files = []
    for name in names:
        file = local_file(project.root / name, name, is_matched=is_glob)
        try:
            mode = os.stat(file.location).st_mode
        except OSError:  # opening it gives the reason
            mode = stat.S_IFREG
        if is_glob and stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            hint = f'{key} = ["{name}/*{suffix}"]' if stat.S_ISDIR(mode) else f"copy it to a {suffix} file"
            check_regular(file.path, name, f"{key} takes files and globs", hint)
        if file.format not in KINDS[kind]:
            raise _unreadable(name, key, kind)
        files.append(file)
    if not files:
        raise DataError(f"{pattern!r} of {key} matches directories only", "", f'{key} = ["{pattern}/*{suffix}"]')
    return files


def _find_remote(url: str, project: Project, key: str, kind: Kind) -> list[SourceFile]:
    """The files of a store. Raises DataError, EnvironmentFault."""
    try:
        listing = list_sources([url], project.root)
    except UsageError as error:
        raise DataError(f"{key}: {error.what}", error.why, error.hint) from None
    if others := [*listing.left_out, *(file.name for file in listing.files if file.format not in KINDS[kind])]:
        raise _unreadable(others[0], key, kind)
    return [replace(file, is_matched=file.location != url) for file in listing.files]


def _unreadable(name: str, key: str, kind: Kind) -> DataError:
    return without_reader(name, kind, key, f'name the files by suffix: {key} = ["data/*{_suffixes(kind)[0]}"]')


def without_reader(name: str, kind: Kind, taker: str, hint: str) -> DataError:
    """The error for a file of a format that a kind of data does not take.

    Args:
        taker: what takes files of the kind: a key of the configuration, or an option.
    """
    what = f"{name}: no reader for {''.join(Path(name).suffixes[-2:]) or 'a file without suffix'}"
    return DataError(what, f"{taker} takes {', '.join(_suffixes(kind))}, also with .gz and .zst", hint)


def _suffixes(kind: Kind) -> list[str]:
    return [suffix for suffix, format in SUFFIXES.items() if format in KINDS[kind]]


def scan_file(file: SourceFile, text_field: str) -> FileScan:
    """Read a file once: its digest, its size and the bytes that are not UTF-8. Raises DataError if it is unreadable.

    A file that is empty is an error unless a glob matched it.
    """
    if file.format in PAGES:
        scan = web.scan_pages(file)
    else:
        scan = scan_texts(file, text_field) if file.format == "parquet" else scan_text(file)
    if not scan.num_bytes and not file.is_matched:
        raise DataError(f"{file.name} is empty", "there is no text to learn from", "put text into it or leave it out")
    return scan


def read_documents(
    file: SourceFile, text_field: str, *, errors: DecodeErrors = "strict", whole: bool = False
) -> Iterator[Piece]:
    """The documents of a file, in order, in pieces, or each as one piece if `whole`. Empty documents are left out.

    Raises DataError naming the file and the place in it.
    """
    if file.format == "text":
        yield from in_pieces(decode_blocks(file, errors), whole)
        return
    for row in read_text_rows(file, text_field, errors):
        if text := row.values[text_field]:
            yield from in_pieces(iter((text,)), whole)


def find_cut(text: str, start: int = 1) -> int:
    """The first place from `start` on where `text` may be cut so that both sides tokenize as they do together, or 0.

    That is before a single space between two marks, a newline after a letter or digit, or a stop between two letters:
    the pre-tokenizers of GPT-2, GPT-4, Llama 3 and their kin let these only begin what follows them there.
    """
    found = _CUT.search(text, max(start, 1))
    return found.start() if found else 0


def in_pieces(blocks: Iterator[str], whole: bool) -> Iterator[Piece]:
    """The blocks of one document as pieces of about PIECE_CHARACTERS, cut where tokens do not change."""
    if whole:
        if text := "".join(blocks):
            yield Piece(text, closes=True)
        return
    rest = ""
    searched = 0  # no cut of `rest` is before this place, other than in its first PIECE_CHARACTERS
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > 2 * PIECE_CHARACTERS:
            cut = find_cut(rest, max(searched, start + PIECE_CHARACTERS))
            if not cut:
                searched = len(rest) - 1
                break
            yield Piece(rest[start:cut], closes=False)
            start = cut
        if start:
            rest = rest[start:]
            searched = max(searched - start, 0)
    if rest:
        yield Piece(rest, closes=True)


def read_text_rows(file: SourceFile, text_field: str, errors: DecodeErrors) -> Iterator[Row]:
    """The rows or pages of a file that is not one text, each with its text in `text_field`, which may be empty.

    The other fields of a row are those of .jsonl and .csv; of .parquet they are not read. Raises as `read_documents`.
    """
    if file.format in PAGES:
        for number, text in enumerate(web.read_texts(file), 1):
            yield Row(file.name, number, f"{file.name}: page {number}", {text_field: text})
        return
    if file.format == "parquet":
        for number, value in enumerate(read_texts(file, text_field, errors), 1):
            place = f"{file.name}: row {number}"
            yield _checked(Row(file.name, number, place, {text_field: value}), text_field, " of column ")
        return
    for row in read_rows(file, errors=errors):
        if text_field not in row.values:
            why = did_you_mean(text_field, row.values)
            raise DataError(f"{row.place}: no field {text_field!r}", why, "aifx train --set data.text_field=NAME")
        yield _checked(row, text_field)


def _checked(row: Row, text_field: str, kind: str = ": field ") -> Row:
    """`row` if its text is one that UTF-8 can hold."""
    text, where = row.values[text_field], f"{row.place}{kind}{text_field!r}"
    if not isinstance(text, str):
        raise DataError(f"{where} is not text", f"it is {type(text).__name__}", "leave the record out or make it text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where} is not Unicode text", f"half a surrogate pair at character {error.start}") from None
    return row


def files_below(folder: Path) -> Iterator[Path]:
    """The files below a folder, in order, without hidden ones."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))
