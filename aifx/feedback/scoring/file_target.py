"""A folder of Parquet files as a target: each call that scores rows adds one, with its position and request in it.

    scores/00001.parquet    predictions; the file's metadata has `ENTRY`
    scores/.positions       JSON: positions that a call moved which scored no rows
    scores/.lock            held by the call that writes

A file is written beside its place and renamed, so it is there with all that the call did, or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import RecordBatch, parquet

from aifx.core.errors import DataError, UsageError
from aifx.core.files import LOCK, FolderBusy, exclusive, remove_temporary, replace_file, replacing
from aifx.core.json_values import encode_json
from aifx.core.os_errors import first_line
from aifx.core.requests import Request, check_act
from aifx.data.readers.rows import FORMATS
from aifx.feedback.scoring.predictions import ID, ID_DIGITS, OWN
from aifx.feedback.scoring.targets import Target

ENTRY = b"aifx.score"
"""Key of a file's metadata: JSON with `scoring_of`, the position, the request, its act and the outcome."""

POSITIONS = ".positions"
"""The file with positions by `scoring_of`, each with the number that the next file had. Later files have newer ones."""


@dataclass(frozen=True)
class Folder:
    """A folder, which need not be there yet."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @contextmanager
    def open(self) -> Iterator[OpenFolder]:
        self._check_path()
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive(self.path / LOCK):
            remove_temporary(self.path)
            with ExitStack() as file:
                yield _read(self.path, file)

    def _check_path(self) -> None:
        """Raise UsageError for a path that is a file or below one, and for a new folder with the name of a file."""
        why, path = "predictions go into a folder, one Parquet file per call", self.path
        for one in (path, *path.parents):
            if os.path.lexists(one) and not one.is_dir():
                raise UsageError(f"{one} is not a folder", why, f"aifx score MODEL SOURCE {one.with_suffix('')}-scores")
        if not path.is_dir() and path.suffix.lower().removeprefix(".") in FORMATS:
            raise UsageError(f"{path} is the name of a file", why, f"aifx score MODEL SOURCE {path.with_suffix('')}")


def _read(folder: Path, file: ExitStack) -> OpenFolder:
    """The folder with what its files say. Raises DataError for one that is no file of predictions."""
    found = OpenFolder(folder, file)
    try:
        found.moved = json.loads((folder / POSITIONS).read_text("utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as e:
        what = f"{folder / POSITIONS} cannot be read"
        raise DataError(what, first_line(e), f"rm {folder / POSITIONS}  # rows are read again") from None
    ids = [found.ids]
    for part in folder.glob("*.parquet"):
        try:
            number = int(part.stem)
            with parquet.ParquetFile(part) as opened:
                schema = opened.schema_arrow
                found.entries[number] = json.loads((opened.metadata.metadata or {})[ENTRY])
                ids += [_packed(batch.column(ID).to_pylist()) for batch in opened.iter_batches(columns=[ID])]
                if len(schema) > len(OWN):
                    found.schema = schema.remove_metadata()
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as e:
            what = f"{part} is no file of predictions"
            raise DataError(what, first_line(e), "name another folder, or move the file out of it") from None
    found.number = max(found.entries, default=0) + 1
    found.ids = np.concatenate(ids)
    found.ids.sort()
    return found


def _packed(ids: Iterable[str]) -> np.ndarray[Any, np.dtype[np.bytes_]]:
    """Ids in 16 bytes each: a set of texts takes six times as much memory."""
    return np.frombuffer(bytes.fromhex("".join(ids)), f"S{ID_DIGITS // 2}")


@dataclass
class OpenFolder(Target):
    """A folder that this call holds. What it adds is there after `finish`.

    Attributes:
        file: the new file, if there is one. It is renamed when this is closed without an error.
        entries: by the number of the file.
        moved: the content of POSITIONS.
        ids: of the predictions that are there, packed and sorted.
        schema: of the predictions that are there; None without any.
        number: of the next file.
    """

    path: Path
    file: ExitStack
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)
    moved: dict[str, tuple[int, Any]] = field(default_factory=dict)
    ids: np.ndarray[Any, np.dtype[np.bytes_]] = field(default_factory=lambda: _packed(()))
    schema: pa.Schema | None = None
    number: int = 1
    writer: Any = None

    def outcome(self, request: Request) -> Mapping[str, Any] | None:
        for entry in self.entries.values():
            if entry["request"] == request.id:
                check_act(request.id, entry["act"] == request.act, f"it is of {entry['act']}")
                found: dict[str, Any] = entry["outcome"]
                return found
        return None

    def position(self, scoring: str) -> Any:
        number, position = self.moved.get(scoring, (0, None))
        kept = [number for number, one in self.entries.items() if one["scoring"] == scoring]
        last = max(kept, default=0)
        return self.entries[last]["position"] if kept and last >= number else position

    def known(self, ids: Collection[str]) -> set[str]:
        if not len(self.ids):
            return set()
        wanted = _packed(ids)
        places = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return {id for id, is_there in zip(ids, self.ids[places] == wanted, strict=True) if is_there}

    def add(self, batch: RecordBatch, scoring: str, position: Any, request: Request | None, model: str) -> int:
        if self.schema is not None and batch.schema != self.schema:
            own, there = (", ".join(f"{one.name} {one.type}" for one in each) for each in (batch.schema, self.schema))
            what = f"the predictions in {self.path} have other columns than those of this model"
            raise UsageError(what, f"{there}; this model's have {own}", "name another folder")
        self._open(batch.schema).write_batch(batch)
        return len(batch)

    def finish(self, scoring: str, position: Any, request: Request | None, outcome: Mapping[str, Any]) -> None:
        if self.writer is None and request is None:
            if position != self.position(scoring):
                moved = self.moved | {scoring: (self.number, position)}
                replace_file(self.path / POSITIONS, encode_json(moved, ensure_ascii=False).encode())
            return
        id, act = (None, None) if request is None else (request.id, request.act)
        entry = {"scoring": scoring, "position": position, "request": id, "act": act, "outcome": outcome}
        writer = self._open(self.schema or OWN)
        if (path := self.path / f"{self.number:05}.parquet").exists():
            raise FolderBusy(f"{path} is there meanwhile", "not aifx wrote it", "run the same command again")
        writer.add_key_value_metadata({ENTRY: encode_json(entry, ensure_ascii=False).encode()})
        self.file.close()

    def _open(self, schema: pa.Schema) -> Any:
        if self.writer is None:
            stream = self.file.enter_context(replacing(self.path / f"{self.number:05}.parquet"))
            self.writer = self.file.enter_context(parquet.ParquetWriter(stream, schema))
        return self.writer
