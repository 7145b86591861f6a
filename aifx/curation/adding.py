"""`aifx data add`: rows of source files become a version, with ids, in columns that fit all files, or in quarantine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import DataType, Field, Schema, Table

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.files import read_file
from aifx.core.json_files import write_json
from aifx.core.json_values import encode_json, plain
from aifx.core.parsing import parse_json
from aifx.core.redaction import redact
from aifx.curation.erased import ErasedRows
from aifx.curation.step import Limits, Outcome, Step, row_prefix
from aifx.data.chat.lines import CHAT_READERS
from aifx.data.names import CHAT, RESERVED, ROW, SOURCE, SPLIT, Kind
from aifx.data.readers.base import TEXT, BadRow, Batch, ColumnsChanged, DamagedFile, ReadOptions, joined
from aifx.data.readers.columnar import LARGE_BYTES, READERS, Reader, read_documents, strings
from aifx.data.readers.encodings import AUTO
from aifx.data.readers.formats import IMAGE, KINDS, PAGES, TARGETS, Format, target_field
from aifx.data.readers.sources import SourceFile
from aifx.data.readers.streams import decided
from aifx.data.readers.web import check_installed
from aifx.data.versions.manifest import REPLACES, ShardFile, Source
from aifx.data.versions.shards import PART_BYTES, columns_of, read_parts, read_shard

TASK_BYTES = 64 << 20
"""Bytes of source files that one task reads, unless one file is larger."""

SLOW = ("html", "warc", "image")
"""Formats of which a process reads a hundredth of what it reads of others in a second."""

COLUMNS, FILES, ALL = "columns.json", "files.json", "all"
QUARANTINE = pa.schema({"source": pa.string(), "line": pa.int64(), "reason": pa.string(), "value": pa.binary()})
DECODED: tuple[Format, ...] = ("text", "jsonl", "csv")
"""The formats that have an encoding."""


@dataclass(frozen=True)
class Add(Step):
    """Collects the rows of files, and keeps the rows of all other files of the version before.

    Attributes:
        files: to read, by name.
        relicensed: licences of sources whose rows stay.
        replaces: the version whose name this one takes without extending it, as "name@<64 digits>"; "" if none.
        scanned: whether columns are inferred from whole files instead of from their beginnings.
        erased: rows that it leaves out, also of the version before.
    """

    files: tuple[SourceFile, ...]
    options: ReadOptions
    license: str
    relicensed: Mapping[str, str] = field(default_factory=dict)
    replaces: str = ""
    scanned: bool = False
    erased: ErasedRows | None = None

    name = "add"

    @property
    def settings(self) -> Mapping[str, Any]:
        files = [
            [
                file.name,
                file.sha256 or file.stamp,
                *([file.target, file.split] if file.format == "image" else []),
                *([file.reader.name, file.reader.sha256] if file.reader else []),
            ]
            for file in self.files
        ]
        digest = sha256_of(encode_json([files, dict(self.relicensed)]))
        erased = {"erased_sha256": self.erased.digest} if self.erased is not None else {}
        replaced = {REPLACES: self.replaces} if self.replaces else {}
        return {"license": self.license, **plain(self.options), "files_sha256": digest, **erased, **replaced}

    @property
    def kind(self) -> Kind:
        return self.options.kind

    def _reader(self, format_: str) -> Reader:
        return (CHAT_READERS if self.kind == "chat" else READERS)[format_]

    @cached_property
    def _replaced(self) -> frozenset[str]:
        return frozenset(file.name for file in self.files)

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(
            replace(source, license=self.relicensed.get(source.name, source.license))
            for source in super().sources
            if source.name not in self._replaced
        )

    @cached_property
    def _groups(self) -> list[tuple[SourceFile, ...]]:
        """Files that one task reads."""
        groups: list[list[SourceFile]] = []
        size = TASK_BYTES
        for file in self.files:
            if size >= TASK_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(file)
            size += file.bytes
        return [tuple(group) for group in groups]

    @cached_property
    def _kept(self) -> tuple[ShardFile, ...]:
        """The files of the version before, with rows and in quarantine."""
        return (*self.parents[0].manifest.shards, *self.parents[0].manifest.quarantine) if self.parents else ()

    @cached_property
    def _is_replacing(self) -> bool:
        """Whether a file that is read was read for the version before."""
        return not self._replaced.isdisjoint(source.name for source in self.parents[0].manifest.sources)

    def _column_of_sources(self, task: int) -> str:
        """The column with the source of each row, in one of the files of the version before."""
        return SOURCE if task < len(self.parents[0].manifest.shards) else "source"

    def kept_file(self, task: int, work: Path) -> ShardFile | None:
        """The file of the version before, unless one of its rows is erased or of a file that is read again."""
        if task >= len(self._kept):
            return None
        parent, column = self.parents[0], self._column_of_sources(task)
        columns = columns_of(_version_schema(_columns(work)[ALL]).empty_table())
        if column == SOURCE and list(parent.manifest.columns.items()) != list(columns.items()):
            return None
        if column == SOURCE and self.erased is not None:
            ids = read_shard(parent.path_of(self._kept[task]), [ROW])[ROW]
            if pc.any(self.erased.are_in(ids), min_count=0).as_py():
                return None
        if not self._is_replacing:
            return self._kept[task]
        names = read_shard(parent.path_of(self._kept[task]), [column])[column].unique().to_pylist()
        return self._kept[task] if self._replaced.isdisjoint(names) else None

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        """Find the columns of each file and of all of them."""
        first = {"text": [TEXT], "images": [IMAGE], "table": [], "chat": [CHAT]}[self.kind]
        found = pa.schema([(name, pa.binary() if name == IMAGE else pa.string()) for name in first])
        if self._kept:
            smallest = min(self.parents[0].manifest.shards or self._kept, key=lambda file: file.bytes)  # to copy
            parent = next(read_parts(self.parents[0].path_of(smallest))).schema
            found = merged(
                found, pa.schema([each for each in parent if each.name not in (ROW, SOURCE)]), "the rows before"
            )
        columns: dict[str, str] = {}
        for file in self.files:
            if file.format == "text":
                continue
            if file.format in PAGES:
                check_installed()
            with file.on_disk() as local:
                try:
                    options = options_of(local, self.options)
                    schema = self._reader(file.format).find_schema(local, options, is_whole=self.scanned)
                except DamagedFile:
                    continue  # its task reports it
            columns[file.name] = schema.serialize().to_pybytes().hex()
            schema = conformed(schema, file.name, file.format, self.options)
            found = merged(found, pa.schema([*schema, *(each for each, _ in known_columns(file))]), file.name)
        if self.kind == "images":
            found = _with_target(found)
        write_json(work / COLUMNS, {ALL: found.serialize().to_pybytes().hex()})
        write_json(work / FILES, columns)
        return {}

    @property
    def worker_bytes(self) -> int:
        return 2 << 20 if any(file.format in SLOW for file in self.files) else 256 << 20

    def tasks(self) -> Sequence[tuple[str, int]]:
        kept = [(file.name, file.bytes) for file in self._kept]
        return kept + [
            (
                group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more",
                sum(f.bytes for f in group),
            )
            for group in self._groups
        ]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        collector = Collector(_columns(work)[ALL], self.options, self.license)
        if task < len(self._kept):
            column = self._column_of_sources(task)
            replaced = pa.array(sorted(self._replaced), pa.string())
            for part in read_parts(self.parents[0].path_of(self._kept[task])):
                rows = part.filter(pc.invert(pc.is_in(part[column], replaced)))
                if column == SOURCE:
                    yield self._without_erased(Outcome(collector.with_all_columns(rows)), None)
                else:
                    yield Outcome(None, quarantine=rows)
            return
        columns = _columns(work, FILES)
        for file in self._groups[task - len(self._kept)]:
            for outcome in self._read(file, columns.get(file.name), collector):
                yield self._without_erased(outcome, self.kind)
        for outcome in collector.flush(is_end=True):
            yield self._without_erased(outcome, self.kind)

    def _without_erased(self, outcome: Outcome, kind: Kind | None) -> Outcome:
        return outcome if self.erased is None else self.erased.drop(outcome, kind)

    def _read(self, file: SourceFile, columns: Schema | None, collector: Collector) -> Iterator[Outcome]:
        with file.on_disk() as local:
            options = options_of(local, self.options)
            collector.begin(file, local.sha256, options.encoding)
            try:
                if file.format == "text":
                    for document in read_documents(local, options):
                        collector.add_document(document)
                        yield from collector.flush()
                elif columns is not None or file.bytes == 0:
                    for batch in self._reader(file.format).read(local, columns, options):
                        collector.add(batch)
                        yield from collector.flush()
                else:
                    self._reader(file.format).find_schema(local, options, is_whole=False)
            except DamagedFile as e:
                collector.add_damage(e)
            except ColumnsChanged:
                assert not self.scanned, f"{file.name} does not fit its own columns"
                raise
        collector.end()


def _with_target(columns: Schema) -> Schema:
    """The columns of pictures with one of TARGETS, `label` if no file has any. Raises DataError for several."""
    found = [name for name in columns.names if name in TARGETS]
    if len(found) > 1:
        why, hint = f"the pictures have {' and '.join(found)}", "add those of each under a name of their own"
        raise DataError("a data set of pictures has one of label, labels and value", why, hint)
    return columns if found else columns.append(target_field(""))


def _columns(work: Path, name: str = COLUMNS) -> dict[str, Schema]:
    """The columns that `prepare` found: of the version, or of each file that has some."""
    found = parse_json(read_file(work / name))
    assert isinstance(found, dict)
    return {one: _schema(text) for one, text in found.items()}


def _schema(text: str) -> Schema:
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))


def conformed(schema: Schema, name: str, format_: str, options: ReadOptions) -> Schema:
    """The columns of a file as the version calls them. Raises DataError if it lacks the text, or names are taken."""
    schema = _storable_columns(schema)
    reserved = sorted(set(schema.names) & set(RESERVED))
    if reserved:
        raise DataError(f"{name} has a column {reserved[0]}", "aifx adds columns of this name", "rename it in the file")
    if options.kind != "text" or format_ in PAGES:
        return schema
    if options.text_field not in schema.names:
        known = ", ".join(schema.names[:8]) or "none"
        hint = f"--text-field {schema.names[0]}, or --kind table" if schema.names else "--kind table"
        raise DataError(f"{name} has no column {options.text_field!r}", f"its columns are {known}", hint)
    if options.text_field != TEXT and TEXT in schema.names:
        why = f"{options.text_field!r} would get this name too"
        raise DataError(f"{name} already has a column {TEXT!r}", why, f"--text-field {TEXT}, or rename one of them")
    index = schema.get_field_index(options.text_field)
    if schema.types[index] not in (pa.string(), pa.null()):
        why = f"it is {schema.types[index]}"
        raise DataError(
            f"{name}: column {options.text_field!r} is not a text", why, "--text-field NAME, or --kind table"
        )
    return schema.set(index, pa.field(TEXT, pa.string()))


def merged(schema: Schema, more: Schema, name: str) -> Schema:
    """The columns of both. Raises DataError if a column has types that do not fit together."""
    try:
        return joined(schema, more)
    except (TypeError, ValueError):  # ArrowTypeError, ArrowInvalid
        for column in filter(schema.names.__contains__, more.names):
            here, there = more.field(column), schema.field(column)
            try:
                joined(pa.schema([there]), pa.schema([here]))
            except (TypeError, ValueError):
                what, why = f"{name}: column {column!r} is {here.type}", f"it is {there.type} in other files"
                hint = "write the column in one type, or add the file under another name"
                raise DataError(what, why, hint) from None
        raise


def known_columns(file: SourceFile) -> list[tuple[Field, Any]]:
    """The columns of a picture, with their values, that its folder or its row of a list gives it."""
    found: list[tuple[Field, Any]] = [] if file.target is None else [(target_field(file.target), file.target)]
    return found if file.split is None else [*found, (pa.field(SPLIT, pa.string()), file.split)]


def _version_schema(columns: Schema) -> Schema:
    """The columns of a version with those of the sources."""
    return pa.schema([pa.field(ROW, pa.string()), pa.field(SOURCE, pa.string()), *columns])


class Collector:
    """Gathers rows until they fill a part."""

    def __init__(self, schema: Schema, options: ReadOptions, license_: str) -> None:
        self._schema = _version_schema(schema)
        self._options, self._license = options, license_
        self._tables: list[Table] = []
        self._documents: list[tuple[str, str, bytes]] = []
        self._bytes = 0
        self._bad: list[tuple[str, BadRow]] = []
        self._sources: list[Source] = []
        self._damaged = 0

    def begin(self, file: SourceFile, digest: str, encoding: str) -> None:
        """The rows that come next are of this file, with this SHA-256 and encoding."""
        self._file, self._digest, self._encoding = file, digest, encoding
        self._prefix = row_prefix(file.name, digest)
        self._rows = self._quarantined = self._number = 0

    def end(self) -> None:
        """The file has no more rows."""
        file = self._file
        self._sources.append(
            Source(
                name=file.name,
                sha256=self._digest,
                bytes=file.bytes,
                rows=self._rows,
                license=self._license,
                quarantined=self._quarantined,
                reading=reading_of(file, self._options, self._encoding),
                stamp=file.stamp,
            )
        )

    def add_document(self, document: bytes | BadRow) -> None:
        """Take the next document of a text file."""
        if isinstance(document, BadRow):
            self.add_bad([document])
        else:
            self._documents.append((f"{self._prefix}-{self._number}", self._file.name, document))
            self._bytes += len(document) + 64
            self._rows += 1
        self._number += 1

    def add(self, batch: Batch) -> None:
        """Take rows of a file, and its bad rows between them."""
        self.add_bad(batch.bad)
        rows = batch.rows
        if not len(rows):
            return
        self._flush_documents()
        if self._options.kind == "text" and self._file.format in KINDS["table"]:
            rows = rows.rename_columns([TEXT if n == self._options.text_field else n for n in rows.column_names])
        for each, value in known_columns(self._file):
            rows = rows.append_column(each, pa.array([value] * len(rows), each.type))
        ids = pc.binary_join_element_wise(self._prefix, batch.numbers.cast(pa.string()), "-")
        rows = rows.add_column(0, SOURCE, pa.repeat(pa.scalar(self._file.name), len(rows))).add_column(0, ROW, ids)
        if any(pa.types.is_nested(kind) for kind in rows.schema.types):
            own = _storable_columns(rows.schema)
            rows = pa.table([_fitted_column(rows.column(each.name), each.type) for each in own], schema=own)
        rows = self.with_all_columns(rows)
        self._tables.append(rows)
        self._bytes += rows.nbytes
        self._rows += len(rows)

    def add_bad(self, bad: Sequence[BadRow]) -> None:
        """Take rows for the quarantine."""
        for row in bad:
            self._bad.append((self._file.name, row))
            self._bytes += len(row.value or b"") + 64
        self._quarantined += len(bad)

    def add_damage(self, damage: DamagedFile) -> None:
        """Take the rest of the file for the quarantine."""
        self._bad.append((self._file.name, BadRow(damage.line, str(damage))))
        self._damaged += 1

    def with_all_columns(self, rows: Table) -> Table:
        """The rows with the columns of the version."""
        if rows.schema.equals(self._schema):
            return rows
        columns = [
            _fitted_column(rows.column(each.name), each.type)
            if each.name in rows.column_names
            else pa.nulls(len(rows), each.type)
            for each in self._schema
        ]
        return pa.table(columns, schema=self._schema)

    def flush(self, *, is_end: bool = False) -> Iterator[Outcome]:
        """The rows that fill a part; at the end, the rest."""
        if self._bytes < PART_BYTES and not is_end:
            return
        self._flush_documents()
        rows = pa.concat_tables(self._tables) if self._tables else None
        facts = {"damaged_files": self._damaged} if self._damaged else {}
        yield Outcome(rows, facts=facts, sources=self._sources, quarantine=self._quarantine())
        self._tables, self._bad, self._sources, self._bytes, self._damaged = [], [], [], 0, 0

    def _flush_documents(self) -> None:
        if not self._documents:
            return
        for is_large, group in groupby(self._documents, lambda document: len(document[2]) >= LARGE_BYTES):
            documents = list(group)
            for part in [[document] for document in documents] if is_large else [documents]:
                ids, names, texts = zip(*part, strict=True)
                columns: dict[str, Any] = {ROW: pa.array(ids), SOURCE: pa.array(names), TEXT: strings(texts)}
                self._tables.append(self.with_all_columns(pa.table(columns)))
        self._documents = []

    def _quarantine(self) -> Table | None:
        bad = [{"source": name, "line": one.line, "reason": one.reason, "value": one.value} for name, one in self._bad]
        return pa.Table.from_pylist(bad, QUARANTINE) if bad else None


def options_of(file: SourceFile, options: ReadOptions) -> ReadOptions:
    """The options with the encoding of a file on this machine."""
    return decided(file, options) if file.format in DECODED else options


def decided_encoding(source: Source) -> str:
    """The encoding that `--encoding auto` found; "" if it was given, or the file is not text."""
    found = re.search(rf"\bencoding={AUTO}:(\S+)", source.reading)
    return found[1] if found else ""


def reading_of(file: SourceFile, options: ReadOptions, encoding: str) -> str:
    """The name of the way to read a file: two readings of the same bytes with one name give the same rows.

    Args:
        encoding: that the file decided, if the options leave it to the file.
    """
    parts: list[str] = [file.format]
    if file.reader is not None:
        parts.append(f"reader={file.reader.name}@{file.reader.sha256}")
    if options.kind == "text" and file.format in KINDS["table"]:
        parts.append(f"text={options.text_field}")
    if file.format in DECODED:
        parts.append(f"encoding={options.encoding}" + (f":{encoding}" if options.encoding == AUTO else ""))
    if file.format == "text" and options.split_at is not None:
        parts.append(f"split_at={options.split_at}")
    if file.split is not None:
        parts.append(f"split={file.split}")
    if file.target is not None:
        parts.append(f"{target_field(file.target).name}={file.target}")
    if file.query:
        parts.append(f"sql={redact(file.query)}")
    return " ".join(parts)


def _storable(kind: DataType) -> DataType:
    """The type with null in place of an object without fields, which Parquet cannot hold."""
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _storable(field.type)) for field in kind]) if kind.num_fields else pa.null()
    return pa.list_(_storable(kind.value_type)) if pa.types.is_list(kind) else kind


def _storable_columns(schema: Schema) -> Schema:
    """The schema with types that Parquet can hold."""
    return pa.schema([(field.name, _storable(field.type)) for field in schema])


def _fitted_column(column: Any, kind: DataType) -> Any:
    """The values of a chunked column in a wider type, or in its storable one."""
    if column.type == kind:
        return column
    return pa.chunked_array([_fitted(chunk, kind) for chunk in column.chunks], kind)


def _fitted(values: Any, kind: DataType) -> Any:
    if values.type == kind:
        return values
    if pa.types.is_null(kind) or pa.types.is_null(values.type):
        return pa.nulls(len(values), kind)
    if pa.types.is_struct(kind) and pa.types.is_struct(values.type):
        names = [field.name for field in values.type]
        children = [
            _fitted(values.field(names.index(field.name)), field.type)
            if field.name in names
            else pa.nulls(len(values), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=values.is_null())
    if pa.types.is_list(kind) and pa.types.is_list(values.type):
        whole = values if values.offset == 0 else pa.concat_arrays([values, values[:0]])
        items = _fitted(whole.values, kind.value_type)
        return pa.ListArray.from_arrays(whole.offsets, items, type=kind, mask=whole.is_null())
    return values.cast(kind)
