"""The outbox of a target: how far its sources were read, what waits to be sent, and what could not be.

    line/notify/<target>/outbox.jsonl    records of what happened, in order
                         .lock           locked by the process that sends

What waits is a fold over the records. Each is on the disk before the next act: events before the position that leaves
them behind, and the success of an attempt after it. So a killed sender loses no event, and may send one again under
the same id. A file that is mostly history is replaced by a short one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aifx.core.errors import DataError
from aifx.core.files import holding, remove_temporary, replace_file
from aifx.core.json_files import JsonLines, encode, read_jsonl
from aifx.core.json_values import encode_json
from aifx.core.os_errors import first_line
from aifx.lines.events import DAMAGE, Event, Position

OUTBOX = "outbox.jsonl"

KEPT_RECORDS = 2000
"""Records that a file may have before it is replaced by a shorter one."""


@dataclass(frozen=True)
class Letter:
    """An event for a target.

    Attributes:
        attempts: made so far, all of which failed.
        next_at: Unix time of the next one; 0 if it can be made at once.
        last_at: Unix time of the last one.
        reason: why the last one failed.
    """

    event: Event
    attempts: int = 0
    next_at: float = 0.0
    last_at: float = 0.0
    reason: str = ""


class Outbox:
    """The outbox in a folder, which may not exist yet. `read` or `writing` fill an object from it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / OUTBOX
        self._file: JsonLines | None = None
        self._clear()

    def _clear(self) -> None:
        self.since: float | None = None
        self.positions: dict[str, Position] = {}
        self.waiting: dict[str, Letter] = {}
        self.dead: dict[str, Letter] = {}
        self._known: set[str] = set()
        self._count = 0

    def read(self) -> Outbox:
        """Read the file. Raises DataError naming a record that is none, OSError, UnsafeFile."""
        self._clear()
        for record in read_jsonl(self.path):
            try:
                self._take(record)
            except DAMAGE as e:
                why = (
                    f"{type(e).__name__}: {first_line(e)}; without the folder, the events of three days are sent again"
                )
                hint = f"mv {self.folder} {self.folder}.damaged && aifx notify run"
                raise DataError(f"record {self._count} of {self.path} is damaged", why, hint) from None
        return self

    def _take(self, record: Mapping[str, Any]) -> None:
        self._count += 1
        kind, id = record.get("is"), str(record.get("id"))
        if kind == "begun":
            self.since = float(record["since"])
        elif kind == "read":
            for source, position in record["positions"].items():
                if any(type(position.get(key, 0)) is not int or position.get(key, 0) < 0 for key in ("bytes", "entry")):
                    raise ValueError(f"{source} is read to {position!r}")
                self.positions[source] = position
        elif kind == "event":
            event = Event(**record["event"])
            if event.id not in self._known:
                self._known.add(event.id)
                self.waiting[event.id] = Letter(event)
        elif kind == "again":
            event = Event(**record["event"])
            self._known.add(event.id)
            self.dead.pop(event.id, None)
            self.waiting.pop(event.id, None)  # so that events that are sent again keep their order
            self.waiting[event.id] = Letter(event)
        elif kind == "sent":
            self.waiting.pop(id, None)
        elif (letter := self.waiting.get(id)) is not None:  # failed, dead
            changed = replace(
                letter, attempts=int(record["attempts"]), next_at=float(record["next_at"]),
                last_at=float(record["last_at"]), reason=str(record["reason"]),
            )  # fmt: skip
            if kind == "dead":
                self.dead[id] = changed
                del self.waiting[id]
            else:
                self.waiting[id] = changed

    def queues(self) -> list[list[Letter]]:
        """What waits, in order per subject."""
        queues = dict[tuple[str, str], list[Letter]]()
        for letter in self.waiting.values():
            queues.setdefault((letter.event.source, letter.event.subject), []).append(letter)
        return list(queues.values())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the outbox, and read what other processes wrote. Raises FolderBusy, EnvironmentFault, OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with holding(self.folder, f"the outbox of {self.folder.name}", "sends its events"):
            self.read()
            remove_temporary(self.folder)
            if self._count > KEPT_RECORDS and self._count > 4 * (len(self.waiting) + len(self.dead)):
                self._shorten()
            self._file = JsonLines(self.path)
            try:
                yield
            finally:
                self._file.close()
                self._file = None

    def _shorten(self) -> None:
        records: list[dict[str, Any]] = [{"is": "begun", "since": self.since or 0.0}]
        records.append({"is": "read", "positions": self.positions})
        for kind, letters in (("failed", self.waiting), ("dead", self.dead)):
            for letter in letters.values():
                records += [{"is": "event", "event": asdict(letter.event)}, _end(kind, letter)]
        replace_file(self.path, encode("".join(encode_json(one, ensure_ascii=False) + "\n" for one in records)))
        self._count = len(records)

    def begin(self, since: float) -> None:
        """Write down that a new target gets the events since a Unix time."""
        self._write({"is": "begun", "since": since})

    def add(self, events: Iterable[Event], positions: Mapping[str, Position]) -> None:
        """Take in events, and then the positions that leave them behind."""
        for event in events:
            self._append({"is": "event", "event": asdict(event)})
        if positions:
            self._append({"is": "read", "positions": dict(positions)})
        self._sync()

    def again(self, event: Event) -> None:
        """Let an event wait that was sent, or is dead."""
        self._write({"is": "again", "event": asdict(event)})

    def sent(self, letter: Letter) -> None:
        self._write({"is": "sent", "id": letter.event.id})

    def failed(self, letter: Letter, *, dead: bool) -> None:
        """Keep a letter with the failure of its last attempt."""
        self._write(_end("dead" if dead else "failed", letter))

    def _write(self, record: Mapping[str, Any]) -> None:
        self._append(record)
        self._sync()

    def _append(self, record: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.append(record)
        self._take(record)

    def _sync(self) -> None:
        assert self._file is not None
        self._file.sync()


def _end(kind: str, letter: Letter) -> dict[str, Any]:
    state = {"attempts": letter.attempts, "next_at": letter.next_at, "last_at": letter.last_at}
    return {"is": kind, "id": letter.event.id, **state, "reason": letter.reason}
