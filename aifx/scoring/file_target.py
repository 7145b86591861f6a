"""A folder of Parquet files as a target: each call that scores rows adds one, with its position and request in it.

    scores/00001.parquet    predictions; the file's metadata has the `Entry`
    scores/.lock            held by the call that writes

A file is written beside its place and renamed, so it is there with all that the call did, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import RecordBatch, parquet

from aifx.core.errors import DataError, UsageError
from aifx.core.files import LOCK, exclusive, remove_temporary, replacing
from aifx.core.json_values import encode_json
from aifx.core.os_errors import first_line
from aifx.core.requests import Request, check_act
from aifx.scoring.predictions import ID, OWN
from aifx.scoring.targets import Target

ENTRY = b"aifx.score"
"""Key of a file's metadata: JSON with the source, its position, the request, the act and the outcome."""


@dataclass(frozen=True)
class Folder:
    """A folder, which need not be there yet."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @contextmanager
    def open(self) -> Iterator[OpenFolder]:
        if self.path.exists() and not self.path.is_dir():
            why = "predictions go into a folder, one Parquet file per call"
            raise UsageError(f"{self.path} is a file", why, f"aifx score MODEL SOURCE {self.path.with_suffix('')}")
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive(self.path / LOCK):
            remove_temporary(self.path)
            with ExitStack() as file:
                yield _read(self.path, file)


def _read(folder: Path, file: ExitStack) -> OpenFolder:
    """The folder with what its files say. Raises DataError for one that is no file of predictions."""
    found = OpenFolder(folder, file)
    for part in sorted(folder.glob("*.parquet")):
        try:
            with parquet.ParquetFile(part) as opened:
                schema = opened.schema_arrow
                found.entries.append(json.loads((opened.metadata.metadata or {})[ENTRY]))
                found.ids.update(opened.read([ID]).column(ID).to_pylist())
                found.number = int(part.stem) + 1
                if len(schema) > len(OWN):
                    found.schema = schema.remove_metadata()
        except (pa.ArrowException, OSError, KeyError, ValueError) as e:
            what = f"{part} is no file of predictions"
            raise DataError(what, first_line(e), "name another folder, or move the file out of it") from None
    return found


@dataclass
class OpenFolder(Target):
    """A folder that this call holds. What it adds is there after `finish`.

    Attributes:
        file: the new file, if there is one. It is renamed when this is closed without an error.
        schema: of the predictions that are there; None without any.
        number: of the next file.
    """

    path: Path
    file: ExitStack
    entries: list[dict[str, Any]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    schema: pa.Schema | None = None
    number: int = 1
    writer: Any = None

    def outcome(self, request: Request) -> Mapping[str, Any] | None:
        for entry in self.entries:
            if entry["request"] == request.id:
                check_act(request.id, entry["act"] == request.act, f"it is of {entry['act']}")
                found: dict[str, Any] = entry["outcome"]
                return found
        return None

    def position(self, source: str) -> Any:
        return next((one["position"] for one in reversed(self.entries) if one["source"] == source), None)

    def known(self, ids: Collection[str]) -> set[str]:
        return self.ids.intersection(ids)

    def add(self, batch: RecordBatch, source: str, position: Any, request: Request | None, model: str) -> int:
        if self.schema is not None and batch.schema != self.schema:
            own, there = (", ".join(f"{one.name} {one.type}" for one in each) for each in (batch.schema, self.schema))
            what = f"the predictions in {self.path} have other columns than those of this model"
            raise UsageError(what, f"{there}; this model's have {own}", "name another folder")
        self._open(batch.schema).write_batch(batch)
        return len(batch)

    def finish(self, source: str, position: Any, request: Request | None, outcome: Mapping[str, Any]) -> None:
        if self.writer is None and request is None and position == self.position(source):
            return
        id, act = (None, None) if request is None else (request.id, request.act)
        entry = {"source": source, "position": position, "request": id, "act": act, "outcome": outcome}
        writer = self._open(self.schema or OWN)
        writer.add_key_value_metadata({ENTRY: encode_json(entry, ensure_ascii=False).encode()})
        self.file.close()

    def _open(self, schema: pa.Schema) -> Any:
        if self.writer is None:
            stream = self.file.enter_context(replacing(self.path / f"{self.number:05}.parquet"))
            self.writer = self.file.enter_context(parquet.ParquetWriter(stream, schema))
        return self.writer
