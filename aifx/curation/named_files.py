"""The rows that training reads of the files that a project's configuration names, as a version of a data set.

It is there for as long as a command looks at them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aifx.config.sections import Section
from aifx.core.artifact import unfinished
from aifx.core.errors import AifxError, DataError, UsageError
from aifx.core.project import Project, cache_path
from aifx.curation.collecting import row_prefix
from aifx.data.chat.section import ChatSection
from aifx.data.implicit import ROWS_FOLDER, find_implicit
from aifx.data.names import CHAT, ROW, SOURCE, Kind
from aifx.data.readers.base import TEXT, rows_not_utf8
from aifx.data.readers.documents import read_text_rows
from aifx.data.readers.encodings import decode_blocks
from aifx.data.readers.parquet import batches_of
from aifx.data.readers.rows import FORMATS, Row, read_rows
from aifx.data.readers.sources import SourceFile
from aifx.data.sections import TextSection
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.manifest import SHARDS, Manifest, Source, StepRecord
from aifx.data.versions.sealing import seal_version
from aifx.data.versions.shards import PART_BYTES, ShardWriter, columns_of, records_of, return_memory

if TYPE_CHECKING:
    from pyarrow import Table

PLACE = "_place"
"""The column with the place of a row as messages of training have it, such as "data/a.csv:6"."""

LARGEST_TEXT = 1 << 30
"""Characters of a document that a row can hold."""

ColumnType: TypeAlias = Literal["int64", "double", "bool", "string"]
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(_WHOLE.pattern + r"(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@contextmanager
def named_rows(reference: str, section: Section, project: Project) -> Iterator[tuple[str, Catalog]]:
    """The name and the catalog of a data set of the rows that training reads of the files that "data.train" or another
    key names; deleted at the end.

    A text is in the column `text`, and a conversation is JSON in `chat`. Any other column holds numbers or truth values
    if all of its values are such, and otherwise texts: JSON of lists and objects. One whose name is taken ends in "_1".

    Raises UsageError if the key names no files or an archive of arrays, DataError for what training cannot read.
    """
    files = find_implicit(reference, section, project)
    reader = _Reader(section)
    return_memory()
    with unfinished(cache_path(ROWS_FOLDER) / files.key) as folder:
        catalog = open_catalog(str(folder))
        columns = reader.find_columns(files.files)
        sources = []
        with ShardWriter(folder / "rows", f"{SHARDS}/00000") as shards:
            shards.add(columns.table([], ""))
            types = columns_of(columns.table([], ""))
            for file in files.files:
                with file.on_disk() if file.is_remote else nullcontext(file.with_digest()) as local:
                    count = 0
                    for rows in _parts(reader.read(local)):
                        shards.add(columns.table(rows, row_prefix(file.name, local.sha256)))
                        count += len(rows)
                sources.append(Source(file.name, local.sha256, file.bytes, count, "unknown"))
        rows, size = (sum(getattr(shard, name) for shard in shards.files) for name in ("rows", "bytes"))
        step, shard_files = StepRecord("add", {}), tuple(shards.files)
        manifest = Manifest(files.key, reader.kind, types, rows, size, shard_files, (), {}, (), step, tuple(sources))
        manifest = replace(manifest, sha256=manifest.artifact().digest)
        (folder / files.key).mkdir()
        os.rename(folder / "rows", folder / files.key / manifest.version)
        seal_version(folder / files.key / manifest.version, manifest, {})
        catalog.set_latest(files.key, manifest.version)
        try:
            yield files.key, catalog
        except AifxError as error:  # its hints name a version that will be gone
            error.hint = error.hint.replace(manifest.reference, files.key)
            raise


@dataclass(frozen=True)
class _Reader:
    """Reads files as training does with a section of the configuration."""

    section: Section

    @property
    def kind(self) -> Kind:
        return self.section.version_kind if isinstance(self.section, TextSection | ChatSection) else "table"

    @property
    def main(self) -> dict[str, str]:
        """The column of the field that has the text or the conversation."""
        if isinstance(self.section, TextSection):
            return {self.section.text_field: TEXT}
        return {CHAT: CHAT} if self.kind == "chat" else {}

    def read(self, file: SourceFile) -> Iterator[Row]:
        """The rows that training reads. Raises DataError, UsageError for a file that has no rows with fields."""
        if isinstance(self.section, ChatSection):
            for row in read_rows(file):
                yield replace(row, values={CHAT: _as_text(dict(row.values))})
        elif not isinstance(self.section, TextSection):
            if file.format not in FORMATS:
                why = f"rows with fields are in {', '.join(f'.{format}' for format in FORMATS)}"
                hint = "write it again without the examples: numpy.load, numpy.savez" if file.suffix == ".npz" else ""
                raise UsageError(f"{file.name} has no rows to search", why, hint)
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

    def find_columns(self, files: Iterable[SourceFile]) -> _Columns:
        """The columns of the rows of all files, in one reading of those whose rows may have any."""
        found: dict[str, set[ColumnType]] = defaultdict(set)
        for file in files if self.kind != "chat" else ():
            for row in self.read(file) if file.format in FORMATS else ():
                for field, value in row.values.items():
                    kinds = found[field]
                    if field not in self.main and "string" not in kinds and (kind := _type_of(value, file)):
                        kinds.add(kind)
        columns: dict[str, tuple[str, ColumnType]] = {field: (name, "string") for field, name in self.main.items()}
        names = {ROW, SOURCE, PLACE, *self.main.values()}
        for field in (field for field in found if field not in self.main):
            name = _escaped(field)
            while name.lower() in names:
                name += "_1"
            names.add(name.lower())
            columns[field] = name, _common(found[field])
        return _Columns(columns)


@dataclass(frozen=True)
class _Columns:
    """The name and the type of the column for each field of the rows."""

    columns: Mapping[str, tuple[str, ColumnType]]

    def table(self, rows: list[Row], prefix: str) -> Table:
        """Rows of one file, with ids that begin with `prefix`. Raises DataError for other fields than there were."""
        import pyarrow as pa

        found = {
            ROW: pa.array([f"{prefix}-{row.number - 1}" for row in rows], pa.string()),
            SOURCE: pa.array([_escaped(row.file) for row in rows], pa.string()),
            PLACE: pa.array([_escaped(row.place) for row in rows], pa.string()),
        }
        try:
            for field, (name, kind) in self.columns.items():
                values = [_fitted(row.values.get(field), kind) for row in rows]
                found[name] = pa.array(values, pa.type_for_alias(kind))
            if odd := next((row for row in rows if row.values.keys() - self.columns.keys()), None):
                raise ValueError(odd.place)
        except (TypeError, ValueError) as error:
            what = f"{rows[0].file} changed while it was read"
            raise DataError(what, str(error), "run the same command again") from None
        return pa.table(found)


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
    import pyarrow as pa

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


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in lists of a few megabytes."""
    part: list[Row] = []
    size = 0
    for row in rows:
        part.append(row)
        size += sum(len(value) if isinstance(value, str) else 64 for value in row.values.values())
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
