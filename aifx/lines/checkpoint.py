"""The checkpoint of a line: its state after a record of the journal, so that a tick reads only the records after it.

    line/checkpoint.json    {"digest": ..., "checkpoint": {"place": ..., "state": ..., ...}}

Nothing rests on it: one that is damaged, or not of this journal or this version of aifx, is ignored, and the next tick
reads the whole journal. Each record has the digest of the one before it, so the digest of the record at its place
depends on all before. A changed record before the place is found only by a reader of the whole journal.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError
from aifx.core.files import RECORDS_LIMIT, read_file, remove_temporary, replace_file
from aifx.core.version import __version__
from aifx.lines.journal import Journal, Place
from aifx.lines.state import LineState, fold

CHECKPOINT = "checkpoint.json"
RECORDS_AFTER = 1000
"""Records after a checkpoint with which the next one is written. A tick reads them in 30 ms."""


@dataclass(frozen=True)
class _Checkpoint:
    place: Place
    state: LineState
    version: str


@dataclass
class Replay:
    """The state of a line, which follows the journal in its folder."""

    folder: Path
    journal: Journal = field(init=False)
    state: LineState = field(init=False)
    _folded: int = 0
    _resets: int = 0

    def __post_init__(self) -> None:
        found = _read(self.folder / CHECKPOINT)
        self.journal, self.state = Journal(self.folder), LineState()
        if found is not None and self.journal.begin_after(found.place):
            self.state = found.state
        self.update()

    def update(self) -> bool:
        """Bring the state up to the journal. Returns whether there was a new record. Raises DamagedJournal, OSError."""
        records = self.journal.records()
        if self.journal.resets != self._resets:
            self.state, self._folded, self._resets = LineState(), 0, self.journal.resets
        added, self._folded = records[self._folded :], len(records)
        fold(added, self.state)
        return bool(added)

    def save(self) -> None:
        """Write a checkpoint if many records came after the last one. A disk that is full keeps the one before."""
        self.update()
        if self._folded < RECORDS_AFTER:
            return
        found = _Checkpoint(self.journal.place, self.state, __version__)
        with suppress(AifxError, OSError, ValueError):  # ValueError of text that is no Unicode
            kept = TypeAdapter(_Checkpoint).dump_json(found)
            data = b'{"digest":"%b","checkpoint":%b}\n' % (sha256_of(kept).encode(), kept)
            remove_temporary(self.folder)
            replace_file(self.folder / CHECKPOINT, data)


def _read(path: Path) -> _Checkpoint | None:
    try:
        digest, _, kept = read_file(path, limit=RECORDS_LIMIT).partition(b'","checkpoint":')
        kept = kept.removesuffix(b"}\n")
        if digest != b'{"digest":"' + sha256_of(kept).encode():
            return None
        found = TypeAdapter(_Checkpoint).validate_json(kept)
    except (OSError, ValueError, AifxError):
        return None
    return found if found.version == __version__ else None
