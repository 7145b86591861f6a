"""The rows that training reads of the files that a project's configuration names, as a version of a data set.

It is there for as long as a command looks at them.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import pyarrow as pa
from pyarrow import Table

from aifx.config.sections import DataSection
from aifx.core.artifact import unfinished
from aifx.core.errors import DataError, UsageError
from aifx.core.plurals import some_names
from aifx.core.project import Project, cache_path
from aifx.core.stores import open_store
from aifx.curation.step import row_prefix
from aifx.curation.work_folders import ROWS_FOLDER
from aifx.data.chat.section import ChatSection
from aifx.data.file_index import ImplicitVersion, find_implicit
from aifx.data.names import CHAT, ROW, SOURCE, SPLIT, Kind
from aifx.data.readers.base import TEXT, rows_not_utf8
from aifx.data.readers.documents import read_text_rows
from aifx.data.readers.encodings import FileScan, decode_blocks
from aifx.data.readers.formats import target_field
from aifx.data.readers.parquet import batches_of
from aifx.data.readers.rows import FORMATS, Row, read_rows
from aifx.data.readers.sources import SourceFile
from aifx.data.sections import DatasetSection, ImagesSection, TextSection
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import SHARDS, Manifest, Source, StepRecord, Version
from aifx.data.versions.shards import PART_BYTES, ShardWriter, columns_of, records_of, return_memory

PLACE = "_place"
"""The column with the place of a row as messages of training have it, such as "data/a.csv:6"."""

_OWN = (ROW, SOURCE, PLACE)

LARGEST_TEXT = 1 << 30
"""Characters of a document that a row can hold."""

ColumnType: TypeAlias = Literal["int64", "double", "bool", "string"]
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(_WHOLE.pattern + r"(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@contextmanager
def named_rows(reference: str, section: DataSection, project: Project) -> Iterator[tuple[str, Catalog]]:
    """The name and the catalog of a data set of the rows that training reads of the files that "data.train" or another
    key names; deleted at the end.

    A text is in the column `text`, and a conversation is JSON in `chat`; of a picture there is what it shows. Any other
    column holds numbers or truth values if all of its values are such, and otherwise texts: JSON of lists and objects.
    One whose name is taken ends in "_1".

    Raises UsageError if the key names no files or an archive of arrays, DataError for what training cannot read.
    """
    version = find_implicit(reference, section, project)
    reader = _Reader(section)
    return_memory()
    with unfinished(cache_path(ROWS_FOLDER) / version.key) as folder:
        columns = reader.find_columns(version.files)
        types = columns_of(_table([], columns))
        sources: list[Source] = []
        with ShardWriter(folder, f"{SHARDS}/00000") as shards:
            shards.add(_table([], columns))
            for rows in _parts(reader.read_all(version, sources)):
                shards.add(_table(rows, columns))
        files, step = tuple(shards.files), StepRecord("add", {})
        num_rows, size = (sum(getattr(file, name) for file in files) for name in ("rows", "bytes"))
        manifest = Manifest(version.key, reader.kind, types, num_rows, size, files, (), {}, (), step, tuple(sources))
        manifest = replace(manifest, sha256=version.sha256)
        yield version.key, _NamedCatalog(open_store(str(folder)), Version(folder, manifest))


@dataclass(frozen=True)
class _NamedCatalog(Catalog):
    """A catalog of one version, which is called as the files are whose rows it has."""

    version: Version

    def manifest(self, reference: str) -> Manifest:
        return self.version.manifest

    def open(self, reference: str) -> Version:
        return self.version


@dataclass(frozen=True)
class NamedRows:
    """The rows and columns in the files of an implicit version.

    Attributes:
        columns: Arrow type by column; none of arrays, or if there are files of stores.
        rows: of each file; None if it has none with fields, or is in a store, from which nothing is read.
    """

    kind: Kind
    columns: Mapping[str, str]
    rows: Mapping[SourceFile, int | None]


def count_rows(version: ImplicitVersion, section: DataSection) -> NamedRows:
    """The rows that training reads of files, without a copy of them. Raises DataError for what it cannot read."""
    reader = _Reader(section)
    rows: dict[SourceFile, int | None] = {}
    for file, scan in version.files.items():
        if file.is_remote or not reader.can_read(file):
            rows[file] = None
        elif isinstance(section, TextSection) and file.format == "text":  # of any size
            rows[file] = int(scan.num_bytes > 0)
        else:
            rows[file] = sum(1 for _ in reader.read(file))
    if None in rows.values():
        return NamedRows(reader.kind, {}, rows)
    types = columns_of(_table([], reader.find_columns(version.files)))
    return NamedRows(reader.kind, {name: kind for name, kind in types.items() if name not in _OWN}, rows)


@dataclass(frozen=True)
class _Reader:
    """Reads files as training does with a section of the configuration."""

    section: DataSection

    @property
    def kind(self) -> Kind:
        return self.section.version_kind if isinstance(self.section, DatasetSection) else "table"

    @property
    def main(self) -> dict[str, str]:
        """The column of the field that has the text or the conversation."""
        if isinstance(self.section, TextSection):
            return {self.section.text_field: TEXT}
        return {CHAT: CHAT} if self.kind == "chat" else {}

    def can_read(self, file: SourceFile) -> bool:
        """Whether the file has rows with fields."""
        return isinstance(self.section, TextSection) or file.format in (*FORMATS, "image")

    def read_all(self, version: ImplicitVersion, sources: list[Source]) -> Iterator[tuple[str, Row]]:
        """The rows of all files with their ids. Appends each file to `sources` after its rows. Raises as `read`."""
        for file, scan in version.files.items():
            with self._on_disk(file, scan) as (local, sha256):
                prefix, count = row_prefix(file.name, sha256), 0
                for row in self.read(local):
                    yield f"{prefix}-{row.number - 1}", row
                    count += 1
            sources.append(Source(file.name, sha256, file.bytes, count, "unknown"))

    @contextmanager
    def _on_disk(self, file: SourceFile, scan: FileScan) -> Iterator[tuple[SourceFile, str]]:
        """The file on this machine, and the SHA-256 of its bytes."""
        if not file.is_remote:  # the index has the digest of decompressed text
            yield file, file.with_digest().sha256 if isinstance(self.section, TextSection) else scan.digest
            return
        with file.on_disk() as local:
            yield local, local.sha256

    def read(self, file: SourceFile) -> Iterator[Row]:
        """The rows that training reads. Raises DataError, UsageError for a file that has no rows with fields."""
        if isinstance(self.section, ChatSection):
            for row in read_rows(file):
                yield replace(row, values={CHAT: _as_text(dict(row.values))})
        elif file.format == "image":
            yield Row(file.name, 1, file.name, _picture_values(file))
        elif not isinstance(self.section, TextSection):
            if not self.can_read(file):
                why = f"rows with fields are in {', '.join(f'.{format}' for format in FORMATS)}"
                hint = "write it again without the examples: numpy.load, numpy.savez" if file.suffix == ".npz" else ""
                raise UsageError(f"{file.name} has no rows to search", why, hint)
            if not isinstance(self.section, ImagesSection):  # a list has no rows beside those of its pictures
                yield from read_rows(file)
        elif file.format == "text":
            if text := _whole_text(file, self.section):
                yield Row(file.name, 1, file.name, {self.section.text_field: text})
        else:
            field = self.section.text_field
            rows: Iterable[Row] = read_text_rows(file, field, self.section.errors)
            if file.format == "parquet":
                pairs = zip(rows, _other_values(file, field), strict=True)
                rows = (replace(row, values={**row.values, **others}) for row, others in pairs)
            yield from (row for row in rows if row.values[field])

    def find_columns(self, files: Iterable[SourceFile]) -> dict[str, tuple[str, ColumnType]]:
        """The name and the type of the column for each field of the rows of all files, in one reading of these."""
        found: dict[str, set[ColumnType]] = defaultdict(set)
        for file in files if self.kind != "chat" else ():
            for row in self.read(file) if file.format in (*FORMATS, "image") else ():
                for field, value in row.values.items():
                    kinds = found[field]
                    if field not in self.main and "string" not in kinds and (kind := _type_of(value, file)):
                        kinds.add(kind)
        columns: dict[str, tuple[str, ColumnType]] = {field: (name, "string") for field, name in self.main.items()}
        names = {*_OWN, *self.main.values()}
        for field in (field for field in found if field not in self.main):
            name = _escaped(field)
            while name.lower() in names:
                name += "_1"
            names.add(name.lower())
            columns[field] = name, _common(found[field])
        return columns


def _table(identified: list[tuple[str, Row]], columns: Mapping[str, tuple[str, ColumnType]]) -> Table:
    """Rows with their ids. Raises DataError for other fields than there were."""
    rows = [row for _, row in identified]
    found = {
        ROW: pa.array([row_id for row_id, _ in identified], pa.string()),
        SOURCE: pa.array([_escaped(row.file) for row in rows], pa.string()),
        PLACE: pa.array([_escaped(row.place) for row in rows], pa.string()),
    }
    try:
        for field, (name, kind) in columns.items():
            values = [_fitted(row.values.get(field), kind) for row in rows]
            found[name] = pa.array(values, pa.type_for_alias(kind))
        if odd := next((row for row in rows if row.values.keys() - columns.keys()), None):
            raise ValueError(odd.place)
    except (TypeError, ValueError) as error:
        what = f"{some_names(list(dict.fromkeys(row.file for row in rows)))} changed while it was read"
        raise DataError(what, str(error), "run the same command again") from None
    return pa.table(found)


def _picture_values(file: SourceFile) -> dict[str, Any]:
    """The label or value of a picture and its split, by the columns that `aifx data add` gives them."""
    target = file.target if file.target is not None else ""
    values = {target_field(target).name: list(target) if isinstance(target, tuple) else target}
    return values if file.split is None else {**values, SPLIT: file.split}


def _whole_text(file: SourceFile, section: TextSection) -> str:
    blocks, size = [], 0
    for block in decode_blocks(file, section.errors):
        blocks.append(block)
        size += len(block)
        if size > LARGEST_TEXT:
            what = f"{file.name} has more than {LARGEST_TEXT:,} characters"
            raise DataError(what, "a document is one row, of which SQL can hold no more", f"grep -n TEXT {file.name}")
    return "".join(blocks)


def _other_values(file: SourceFile, text_field: str) -> Iterator[dict[str, Any]]:
    """The values of each row of a Parquet file but its text. Bytes that should be UTF-8 and are not stay bytes."""
    count = 0
    for batch in batches_of(file):
        columns = {name: batch.column(name) for name in batch.schema.names if name != text_field}
        for name, column in columns.items():
            if pa.types.is_string(column.type) and rows_not_utf8(column):
                columns[name] = column.cast(pa.binary())
        try:
            found = records_of(pa.table(columns)) if columns else [{} for _ in range(len(batch))]
        except (ValueError, OverflowError) as error:
            what = f"{file.name}: rows {count + 1} to {count + len(batch)} cannot be read"
            raise DataError(what, str(error).partition(". ")[0], "write the column otherwise") from None
        yield from found
        count += len(batch)


def _parts(rows: Iterable[tuple[str, Row]]) -> Iterator[list[tuple[str, Row]]]:
    """Rows in lists of a few megabytes."""
    part: list[tuple[str, Row]] = []
    size = 0
    for one in rows:
        part.append(one)
        size += sum(len(value) if isinstance(value, str) else 64 for value in one[1].values.values())
        if size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _type_of(value: Any, file: SourceFile) -> ColumnType | None:
    """The type of a value; None if any column can hold it. Cells of CSV are texts, of which some are numbers."""
    if isinstance(value, str) and file.format == "csv":
        return (
            None if not value else "int64" if _WHOLE.fullmatch(value) else "double" if _is_number(value) else "string"
        )
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "string"
    return None if value is None else "double" if isinstance(value, float) else "string"


def _is_number(text: str) -> bool:
    """Whether it is written as JSON writes it, so that "007" stays text."""
    return _NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def _common(kinds: set[ColumnType]) -> ColumnType:
    """The type that holds values of all these."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return "double" if kinds == {"int64", "double"} else "string"


def _fitted(value: Any, kind: ColumnType) -> Any:
    """A value in the type of its column."""
    if value is None or kind == "bool":
        return value
    if kind == "string":
        return _as_text(value)
    return None if value == "" else int(value) if kind == "int64" else float(value)


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, bool | int | float | list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return _escaped(str(value))


def _escaped(text: str) -> str:
    """The text with halves of surrogate pairs as JSON writes them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
