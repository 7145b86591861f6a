"""Readers of a project's own: `aifx data add` reads the files with their suffixes by `datasets.readers`.

Their rows become JSON lines, which `jsonl` turns into columns with the types that all rows fit.
"""

from __future__ import annotations

import inspect
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from aifx.core.digests import sha256_of_file
from aifx.core.errors import ConfigError
from aifx.core.project import CONFIG_NAME, Project
from aifx.data.readers import jsonl
from aifx.data.readers.arrow import pa
from aifx.data.readers.base import (
    BLOCK_BYTES,
    ROW_BYTES,
    SAMPLE_BYTES,
    BadRow,
    Batch,
    DamagedFile,
    OwnReader,
    ReadOptions,
)
from aifx.data.readers.formats import CODECS, SUFFIXES
from aifx.data.readers.streams import open_bytes

if TYPE_CHECKING:
    from aifx.data.readers.sources import SourceFile

KEY = "datasets.readers"


class FileReader(ABC):
    """Reads files of a format of a project's own into rows.

    One object of it, made without arguments, reads one file.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes of the files that it reads, in lower case, such as ".srt"; the files may also end with .gz or .zst."""

    @abstractmethod
    def read(self, file: IO[bytes]) -> Iterator[Mapping[str, Any] | BadRow]:
        """The rows of a file in order, each its values by field, or a BadRow for one that cannot be read.

        A ValueError means that the rest of the file cannot be read.

        Args:
            file: its bytes, decompressed.
        """


def find_readers(names: Sequence[str], project: Project) -> dict[str, OwnReader]:
    """The readers that `datasets.readers` names, by suffix. Raises ConfigError for one that cannot be used."""
    found: dict[str, OwnReader] = {}
    for name in names:
        cls = _reader_class(name, project)
        place = inspect.getsourcefile(cls)
        reader = OwnReader(name, project.root, sha256_of_file(Path(place)) if place else "")
        for suffix in cls.suffixes:
            if suffix in found:
                raise _unusable(name, f"{suffix} is also a suffix of {found[suffix].name!r}")
            found[suffix] = reader
    return found


def _reader_class(name: str, project: Project) -> type[FileReader]:
    """The class of this name. Raises ConfigError."""
    from aifx.config.parts import import_object  # all sections of aifx.toml, which few uses of `data add` need

    found = import_object(KEY, name, project)
    if not (isinstance(found, type) and issubclass(found, FileReader)):
        raise _unusable(name, "it is not a class that derives from aifx.extend.FileReader")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise _unusable(name, f"{found.__name__} in {found.__module__}.py does not define {', '.join(missing)}")
    suffixes: Any = found.suffixes
    if isinstance(suffixes, str) or not suffixes:
        raise _unusable(name, f'{found.__name__}.suffixes is a tuple of suffixes such as (".srt",)')
    for suffix in suffixes:
        if not re.fullmatch(r"\.[^./\sA-Z]+", suffix) or suffix in CODECS:
            raise _unusable(name, f"{suffix!r} of {found.__name__}.suffixes is no suffix in lower case such as .srt")
        if suffix in SUFFIXES:
            raise _unusable(name, f"aifx itself reads {suffix}, which is in {found.__name__}.suffixes")
    return found


def _unusable(name: str, why: str) -> ConfigError:
    return ConfigError(f"{CONFIG_NAME}: {KEY} = {name!r} cannot be used", why, "docs/own-reader.md has an example")


def find_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> pa.Schema:
    """The columns of a file: of all of it, or of its beginning."""
    with closing(_blocks(file, options, BLOCK_BYTES if is_whole else SAMPLE_BYTES)) as blocks:
        lines = (block for block in blocks if isinstance(block, bytes))
        return jsonl.schema_of(lines, options, is_whole=is_whole)


def read(file: SourceFile, schema: pa.Schema, options: ReadOptions) -> Iterator[Batch]:
    """The rows of a file. Raises ColumnsChanged if a row has more columns or wider types than `schema`."""
    number = 0
    for block in _blocks(file, options, BLOCK_BYTES):
        if isinstance(block, BadRow):
            yield Batch(schema.empty_table(), pa.array([], pa.int64()), [block])
            number += 1
        else:
            batch, num_rows, _ = jsonl.block_batch(block, schema, options, number, number + 1)
            yield batch
            number += num_rows


class _Raw(io.RawIOBase):
    """A stream with `read1` as a raw file, which `io.BufferedReader` takes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _blocks(file: SourceFile, options: ReadOptions, size: int) -> Generator[bytes | BadRow]:
    """The rows of a file as JSON lines, in blocks of about `size` bytes, and the bad rows between them.

    Raises DamagedFile, after the rows before the damage.
    """
    assert file.reader is not None
    lines: list[bytes] = []
    num_bytes, number = 0, 0
    damage: DamagedFile | None = None
    rows = _rows(file, file.reader, options)
    while True:
        try:
            row = next(rows, None)
        except DamagedFile as error:
            row, damage = None, DamagedFile(str(error), number + 1)
        if isinstance(row, bytes):
            lines.append(row)
            num_bytes += len(row)
        if lines and (not isinstance(row, bytes) or num_bytes >= size):
            yield b"\n".join(lines) + b"\n"
            lines, num_bytes = [], 0
        if damage is not None:
            raise damage
        if row is None:
            return
        number += 1
        if isinstance(row, BadRow):
            yield BadRow(number if row.line is None else row.line, row.reason, row.value)


def _rows(file: SourceFile, reader: OwnReader, options: ReadOptions) -> Iterator[bytes | BadRow]:
    """Each row of a file as a JSON line, or a bad row. Raises DamagedFile, and ConfigError if the reader fails."""
    from aifx.config.project_errors import project_errors

    project = Project(reader.root)
    cls = _reader_class(reader.name, project)
    call = f"{cls.__name__}.read"
    with open_bytes(file, options) as stream, project_errors(f"{KEY} = {reader.name!r}", project, call):
        try:
            for row in cls().read(io.BufferedReader(_Raw(stream), 1 << 20)):
                yield row if isinstance(row, BadRow) else _line(row, reader, call)
            return
        except DamagedFile as error:
            damage = error
        except ValueError as error:
            damage = DamagedFile(f"{call}: {type(error).__name__}: {error}")
    raise damage  # outside of `project_errors`: the file is at fault


def _line(row: Any, reader: OwnReader, call: str) -> bytes | BadRow:
    if not isinstance(row, Mapping):
        raise _unusable(reader.name, f"{call} gave {type(row).__name__}, not a row by field or a BadRow")
    try:
        line = json.dumps(dict(row), ensure_ascii=False).encode()
    except TypeError as error:
        raise _unusable(reader.name, f"{call} gave a row that JSON cannot hold: {error}") from None
    except UnicodeEncodeError:
        return BadRow(None, "half a surrogate pair is no Unicode text")
    return line if len(line) <= ROW_BYTES else BadRow(None, f"the row has more than {ROW_BYTES >> 20} MiB")
