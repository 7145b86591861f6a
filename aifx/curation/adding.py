"""`aifx data add`: rows of source files become a version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.files import read_file
from aifx.core.json_files import write_json
from aifx.core.json_values import encode_json, plain
from aifx.core.parsing import parse_json
from aifx.curation.collecting import Collector, conformed, known_columns, merged, options_of
from aifx.curation.step import Limits, Outcome, Step
from aifx.data.chat.lines import CHAT_READERS
from aifx.data.names import CHAT, ROW, SOURCE, Kind
from aifx.data.readers.base import TEXT, ColumnsChanged, DamagedFile, ReadOptions
from aifx.data.readers.columnar import READERS, Reader
from aifx.data.readers.formats import PAGES
from aifx.data.readers.images import IMAGE, TARGETS, target_field
from aifx.data.readers.sources import SourceFile
from aifx.data.readers.text import read_documents
from aifx.data.readers.web import check_installed
from aifx.data.versions.manifest import Source
from aifx.data.versions.shards import read_parts

if TYPE_CHECKING:
    from pyarrow import Schema, Table

TASK_BYTES = 64 << 20
"""Of source files that one task reads, unless one file is larger."""

COLUMNS = "columns.json"


@dataclass(frozen=True)
class Add(Step):
    """Collects the rows of files, and keeps the rows of all other files of the version before.

    Attributes:
        files: to read, by name.
        relicensed: licences of sources whose rows stay.
        scanned: whether columns are inferred from whole files instead of from their beginnings.
    """

    files: tuple[SourceFile, ...]
    options: ReadOptions
    license: str
    relicensed: Mapping[str, str] = field(default_factory=dict)
    scanned: bool = False

    name = "add"

    @property
    def settings(self) -> Mapping[str, Any]:
        files = [
            [file.name, file.sha256 or file.stamp, *([file.target, file.split] if file.format == "image" else [])]
            for file in self.files
        ]
        content = encode_json([files, dict(self.relicensed)])
        digest = sha256_of(content)
        return {"license": self.license, **plain(self.options), "files_sha256": digest}

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
    def _kept(self) -> list[tuple[Path, int, bool]]:
        """The files of the version before: path, bytes, and whether it is a quarantine."""
        if not self.parents:
            return []
        parent = self.parents[0]
        shards = [(parent.path / file.name, file.bytes, False) for file in parent.manifest.shards]
        return shards + [(parent.path / file.name, file.bytes, True) for file in parent.manifest.quarantine]

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        """Find the columns of each file and of all of them."""
        import pyarrow as pa

        first = {"text": [TEXT], "images": [IMAGE], "table": [], "chat": [CHAT]}[self.kind]
        found = pa.schema([(name, pa.binary() if name == IMAGE else pa.string()) for name in first])
        if self.parents and self._kept:
            parent = next(read_parts(self._kept[0][0])).schema
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
        write_json(work / COLUMNS, {"all": found.serialize().to_pybytes().hex(), "files": columns})
        return {}

    def tasks(self) -> Sequence[tuple[str, int]]:
        kept = [(path.name, size) for path, size, _ in self._kept]
        return kept + [
            (
                group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more",
                sum(f.bytes for f in group),
            )
            for group in self._groups
        ]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        columns = parse_json(read_file(work / COLUMNS))
        assert isinstance(columns, dict)
        collector = Collector(_schema(columns["all"]), self.options, self.license)
        if task < len(self._kept):
            path, _, is_quarantine = self._kept[task]
            for rows in read_parts(path):
                yield self._rows_before(rows, is_quarantine, collector)
            return
        for file in self._groups[task - len(self._kept)]:
            collector.begin(file)
            serialized = columns["files"].get(file.name)
            yield from self._read(file, _schema(serialized) if serialized else None, collector)
        yield from collector.flush(is_end=True)

    def _rows_before(self, rows: Table, is_quarantine: bool, collector: Collector) -> Outcome:
        from pyarrow import compute as pc

        column = "source" if is_quarantine else SOURCE
        if self._replaced:
            import pyarrow as pa

            is_replaced = pc.is_in(rows[column], pa.array(sorted(self._replaced), pa.string()))
            rows = rows.filter(pc.invert(is_replaced))
        if is_quarantine:
            return Outcome(None, quarantine=rows)
        return Outcome(collector.with_all_columns(rows))

    def _read(self, file: SourceFile, columns: Schema | None, collector: Collector) -> Iterator[Outcome]:
        with file.on_disk() as local:
            options = options_of(local, self.options)
            collector.opened(local.sha256, options.encoding)
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


def _schema(text: str) -> Schema:
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))
