"""Text on disk: which files a project names, and the documents in them.

A document is text that belongs together: a .txt file, a record of a .jsonl file, a row of a .parquet file. Documents
come in pieces so that one of any length needs little memory; `cut_piece` says where a piece may end.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aifx.errors import DataError, EnvironmentFault, did_you_mean
from aifx.extras import install_command
from aifx.project import Project

SUFFIXES = (".txt", ".jsonl", ".parquet")
BLOCK_BYTES = 1 << 20
PIECE_CHARACTERS = 1 << 15


@dataclass(frozen=True)
class TextFile:
    """A file that holds documents. `name` is what messages call it: relative to the project where it lies inside."""

    path: Path
    name: str


@dataclass(frozen=True)
class Piece:
    """A part of a document. `closes` marks the document's last piece."""

    text: str
    closes: bool

    @cached_property
    def num_bytes(self) -> int:
        """Of its UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())


def find_files(patterns: Sequence[str], project: Project, key: str) -> list[TextFile]:
    """The files that `patterns` of the configuration key `key` name, those of one pattern sorted, each once."""
    found: dict[Path, TextFile] = {}
    for pattern in patterns:
        names = sorted(glob.glob(pattern, root_dir=project.root, recursive=True))
        is_glob = glob.has_magic(pattern)
        if not names:
            what = f"no file matches {pattern!r} of {key}" if is_glob else f"no file {pattern!r}, which {key} names"
            raise DataError(what, f"looked in {project.root}", f"aifx config show  # then set {key} in aifx.toml")
        for name in names:
            path = project.root / name
            if path.is_dir() and is_glob:
                continue
            takes, hint = f"{key} takes files and globs", "copy its text to a .txt file"
            check_regular(path, name, takes, f'{key} = ["{name}/*.txt"]' if path.is_dir() else hint)
            if path.suffix.lower() not in SUFFIXES:
                raise DataError(
                    f"{name}: no reader for {path.suffix or 'a file without suffix'}",
                    f"{key} takes {', '.join(SUFFIXES)}",
                    f'name the files by suffix: {key} = ["data/*.txt"]',
                )
            found.setdefault(path.resolve(), TextFile(path, name))
        if not found:
            raise DataError(f"{pattern!r} of {key} matches directories only", "", f'{key} = ["{pattern}/*.txt"]')
    return list(found.values())


def check_regular(path: Path, name: str, why: str, hint: str) -> None:
    """Raises DataError for a directory, and for a pipe, socket or device, whose reading may never end.

    A path that does not exist passes: opening it gives the reason.
    """
    if path.is_dir():
        raise DataError(f"{name} is a directory", why, hint)
    if path.exists() and not path.is_file():
        raise DataError(f"{name} is not a regular file", why, hint)


def file_digest(file: TextFile) -> str:
    """SHA-256 of the file's bytes. Raises DataError for a file that is empty or cannot be read."""
    with _reading(file), open(file.path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        if stream.tell() == 0:
            raise DataError(
                f"{file.name} is empty", "there is no text to learn from", "put text into it or leave it out"
            )
    return digest.hexdigest()


def read_documents(file: TextFile, text_field: str, *, whole: bool = False) -> Iterator[Piece]:
    """The documents of a file, in order, in pieces; with `whole`, each document is one piece. Empty documents are left
    out. Raises DataError naming the file and the place in it."""
    suffix = file.path.suffix.lower()
    with _reading(file):
        if suffix == ".txt":
            yield from _in_pieces(_decode(file), whole)
            return
        for text in _jsonl(file, text_field) if suffix == ".jsonl" else _parquet(file, text_field):
            if text:
                yield from _in_pieces(iter((text,)), whole)


def cut_piece(text: str) -> int:
    """The last place where `text` may be cut so that both sides tokenize as they do together, or 0.

    That is before a single space between two marks, or before a newline after a letter: the pre-tokenizers of GPT-2,
    GPT-4, Llama 3 and their kin let a space or a newline only begin what follows it there.
    """
    for space, may_follow in ((" ", _is_mark), ("\n", str.isalpha)):
        place = len(text) - 1
        while (place := text.rfind(space, 1, place)) > 0:
            if may_follow(text[place - 1]) and _is_mark(text[place + 1]):
                return place
    return 0


def _is_mark(character: str) -> bool:
    return not character.isspace()


def _in_pieces(blocks: Iterator[str], whole: bool) -> Iterator[Piece]:
    """The blocks of one document as pieces of about PIECE_CHARACTERS, cut where tokens do not change."""
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while not whole and len(rest) - start > 2 * PIECE_CHARACTERS:
            cut = cut_piece(rest[start : start + PIECE_CHARACTERS]) or cut_piece(rest[start:])
            if not cut:
                break
            yield Piece(rest[start : start + cut], closes=False)
            start += cut
        rest = rest[start:]
    if rest:
        yield Piece(rest, closes=True)


def _decode(file: TextFile) -> Iterator[str]:
    """The text of a UTF-8 file, byte for byte (newlines as they are), in blocks."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(file.path, "rb") as stream:
        offset = 0
        while True:
            block = stream.read(BLOCK_BYTES)
            kept = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                wrong = offset - kept + error.start
                stream.seek(0)
                raise _not_utf8(file, wrong, stream.read(wrong).count(b"\n") + 1, error) from None
            offset += len(block)
            if text:
                yield text
            if not block:
                return


def _not_utf8(file: TextFile, offset: int, line: int, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{file.name}:{line}: not UTF-8",
        f"byte {offset} is 0x{error.object[error.start]:02x} ({error.reason})",
        f"iconv -f WINDOWS-1252 -t UTF-8 {file.name} > fixed{file.path.suffix}  # where it was Windows text",
    )


def _jsonl(file: TextFile, text_field: str) -> Iterator[str]:
    hint = "each line is one JSON object; data.text_field names the field with the text"
    with open(file.path, "rb") as stream:
        offset = 0
        for number, line in enumerate(stream, 1):
            where = f"{file.name}:{number}"
            try:
                record = json.loads(line.decode("utf-8")) if line.strip() else None
            except UnicodeDecodeError as error:
                raise _not_utf8(file, offset + error.start, number, error) from None
            except ValueError as error:
                raise DataError(f"{where}: not JSON", str(error), hint) from None
            except RecursionError:
                raise DataError(f"{where}: not JSON that can be read", "it is nested too deeply", hint) from None
            offset += len(line)
            if not line.strip():
                continue
            if not isinstance(record, dict):
                raise DataError(f"{where}: not a JSON object", f"it is {type(record).__name__}", hint)
            if text_field not in record:
                why = did_you_mean(text_field, [str(key) for key in record])
                raise DataError(f"{where}: no field {text_field!r}", why, "aifx train --set data.text_field=NAME")
            yield _checked(record[text_field], f"{where}: field {text_field!r}")


def _parquet(file: TextFile, text_field: str) -> Iterator[str]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise EnvironmentFault(
            f"{file.name}: pyarrow is not installed", "it reads .parquet files", install_command("parquet")
        ) from None
    arrow: Any = importlib.import_module("pyarrow")
    try:
        table = parquet.ParquetFile(file.path)
        columns = table.schema_arrow.names
        if text_field not in columns:
            why = did_you_mean(text_field, columns)
            raise DataError(f"{file.name}: no column {text_field!r}", why, "aifx train --set data.text_field=NAME")
        row = 0
        for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
            for text in batch.column(0).to_pylist():
                row += 1
                yield _checked(text, f"{file.name}: row {row} of column {text_field!r}")
    except arrow.ArrowException as error:
        raise DataError(
            f"{file.name}: not a Parquet file that can be read",
            str(error).splitlines()[0],
            "write the file again, or leave it out of data.train",
        ) from None


def _checked(text: object, where: str) -> str:
    """`text` if it is text that UTF-8 can hold."""
    if not isinstance(text, str):
        raise DataError(f"{where} is not text", f"it is {type(text).__name__}", "leave the record out or make it text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where} is not Unicode text", f"half a surrogate pair at character {error.start}") from None
    return text


class _reading:
    """Turns the operating system's refusal to read `file` into a DataError."""

    def __init__(self, file: TextFile) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            raise DataError(f"{self.file.name} cannot be read", why, f"ls -l {self.file.name}") from error
