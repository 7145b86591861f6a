"""Events: what business systems should know, derived from what is written anyway.

| source | events |
| --- | --- |
| the journal of the line | station.failed, gate.failed, node.unhealthy |
| reports of `aifx doctor` outside of a line | node.unhealthy |
| reports of `aifx monitor` in the journal, and outside of a line | drift |
| the ledgers of the registry | promoted, rolled_back, gate.failed |
| `events.jsonl` of each run | run.diverged |

Nothing else is written when something happens. A reader keeps a position per source, and derives the same events from
the same records whenever and wherever it reads them: the id of an event is a digest of its record.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from aifx.core.digests import sha256_of, sha256_of_json
from aifx.core.errors import AifxError
from aifx.core.files import open_file
from aifx.core.json_files import parse_line
from aifx.core.json_values import encode_json
from aifx.core.os_errors import first_line
from aifx.core.project import RUN_NAME, Project, RunDirectory
from aifx.core.redaction import redact_values
from aifx.lines.journal import JOURNAL, Record
from aifx.lines.reports import DOCTOR, MONITOR, MOST_TEXT, summaries, unhealthy
from aifx.registry.ledger import Entry, file_name
from aifx.registry.roots import MODELS, Root
from aifx.registry.state import MOVES, ModelState

TEST = "test"
"""Type of the event that `aifx notify test` sends."""

TYPE_PREFIX = "aifx."

END_OF_TIME = 253402300800
"""Unix time of the year 10000, which no calendar of receivers has."""

MOST_DATA_BYTES = 32 << 10
"""Bytes of JSON that the data of an event have at most: each CloudEvents intermediary takes 64 KiB."""

_OWN_EVENTS = ("train", "registry promote")
"""Commands whose bad verdict another source records: events.jsonl, or the ledger."""

_ACTIONS = {"promote": "promoted", "rollback": "rolled_back", "refuse": "gate.failed"}

Position = Mapping[str, Any]


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        id: digest of the record that it was derived from.
        type: such as "promoted".
        source: where it happened, a reference such as "registry/models/fraud".
        subject: model, station, run or node. Events of a subject are sent in their order.
        time: Unix time.
        data: what else is known of it.
    """

    id: str
    type: str
    source: str
    subject: str
    time: float
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for what is no event: records that others wrote may hold anything."""
        texts = (self.id, self.type, self.source, self.subject)
        if not (all(isinstance(text, str) for text in texts) and isinstance(self.data, Mapping)):
            raise ValueError("a text or the data of an event have another type")
        if not (isinstance(self.time, int | float) and 0 <= self.time < END_OF_TIME):
            raise ValueError(f"time {self.time!r} is none")

    def cloud_event(self) -> dict[str, Any]:
        """The event in the JSON format of CloudEvents 1.0."""
        time = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": f"{TYPE_PREFIX}{self.type}",
            "subject": self.subject,
            "time": time,
            "datacontenttype": "application/json",
            "data": dict(self.data),
        }


@dataclass(frozen=True)
class Reading:
    """What a reader finds after its positions.

    Attributes:
        events: in order per source.
        positions: those that moved, by source.
        problems: sources that cannot be read now, whose positions stay, and damaged records.
        has_more: whether a source may have further events.
    """

    events: tuple[Event, ...]
    positions: Mapping[str, Position]
    problems: tuple[AifxError, ...]
    has_more: bool = False


Step = tuple[Sequence[Event], Position]
"""The events of a record, and the position after it."""


def read_events(
    project: Project,
    root: Root | None,
    positions: Mapping[str, Position],
    *,
    is_wanted: Callable[[Event], bool] = lambda event: True,
    most: float = math.inf,
) -> Reading:
    """The events after some positions; all of them without positions.

    Args:
        root: of the models; without it, the journal of the line and the reports outside of it are read alone.
        is_wanted: whether an event counts.
        most: events of a source after which the rest of it is left for the next reading.
    """
    events, moved, problems, has_more = list[Event](), dict[str, Position](), dict[str, AifxError](), False

    def report(error: AifxError) -> None:
        problems.setdefault(str(error), error)

    for key, place, steps in _sources(project, root, positions, report):
        count = 0
        try:
            for found, position in steps:
                wanted = [event for event in found if is_wanted(event)]
                events += wanted
                count += len(wanted)
                moved[key] = position
                if count >= most:
                    has_more = True
                    break
        except (AifxError, OSError) as e:
            report(_unreadable(place, e))
    return Reading(tuple(events), moved, tuple(problems.values()), has_more)


def _sources(
    project: Project, root: Root | None, positions: Mapping[str, Position], report: Callable[[AifxError], None]
) -> Iterator[tuple[str, str, Iterator[Step]]]:
    """The key of each source, its place, and its steps after a position. Those of a line alone without a root."""
    name, folder = project.root.name, project.root / "line"
    sources = [("journal", folder / JOURNAL, f"{name}/line", _of_journal)]
    sources += [("doctor", folder / DOCTOR.file, f"{name}/doctor", _of_doctor)]
    sources += [("monitor", folder / MONITOR.file, f"{name}/monitor", _of_monitor)]
    if root is not None:
        sources += [(f"run:{run}", path, f"{name}/runs/{run}", _of_run) for run, path in _run_files(project)]
    for key, path, source, derive in sources:
        yield key, str(path), _line_steps(path, positions.get(key), partial(derive, project, source), report)
    if root is None:
        return
    try:
        names = [one for one in root.store.folders(MODELS) if RUN_NAME.fullmatch(one)]
    except AifxError as e:
        report(e)
        return
    for model in sorted(names):
        key = f"model:{model}"
        yield key, f"the ledger of {model}", _ledger_steps(root, model, positions.get(key), report)


def _unreadable(what: str, error: AifxError | OSError) -> AifxError:
    if isinstance(error, AifxError):
        return error
    return AifxError(f"{what} cannot be read", error.strerror or str(error), f"ls -l {what}")


DAMAGE = (AttributeError, KeyError, TypeError, ValueError)
"""Errors of reading a record whose values have other types than aifx writes."""


def _damaged(what: str, error: Exception, hint: str) -> AifxError:
    why = f"a record is none that aifx writes ({first_line(error)}), and gives no event"
    return AifxError(f"{what} is damaged", why, hint)


def _event(record: Any, type: str, source: str, subject: str, time: float, data: Mapping[str, Any]) -> Event:
    """The event of a record, which is JSON or a digest.

    The id says nothing of folders and machines, so that each reader of a registry gives the same one.
    """
    data = {key: value for key, value in redact_values(dict(data)).items() if value not in (None, "", [], {})}
    return Event(sha256_of_json([type, subject, record]), type, source, subject, time, _shortened(data))


def _shortened(data: dict[str, Any]) -> dict[str, Any]:
    """The data without their largest fields, which `left_out` names, if they are more than receivers take."""
    sizes = {key: len(encode_json(value)) for key, value in data.items()}
    left_out = list[str]()
    while sum(sizes.values()) > MOST_DATA_BYTES:
        left_out.append(largest := max(sizes, key=lambda key: sizes[key]))
        del sizes[largest]
    return {key: data[key] for key in sizes} | ({"left_out": left_out} if left_out else {})


# Files of JSON lines. A position is the end of the last whole line, with a digest of the first: another file of the
# same name, such as that of a run that was deleted and trained again, is read from its beginning.


def _line_steps(
    path: Path,
    position: Position | None,
    derive: Callable[[Mapping[str, Any]], Iterator[Event]],
    report: Callable[[AifxError], None],
) -> Iterator[Step]:
    """The records after a position, one after the other. Only what is new is read. Raises OSError, UnsafeFile."""
    at, first = int((position or {}).get("bytes", 0)), str((position or {}).get("first", ""))
    try:
        handle = open_file(path)
    except FileNotFoundError:
        return
    with open(handle, "rb") as file:
        size = os.fstat(handle).st_size
        if size == at and position:
            return
        head = sha256_of(file.readline())
        if size < at or head != first:
            at = 0
        file.seek(at)
        for line in file:
            if not line.endswith(b"\n"):  # it is being written
                return
            at += len(line)
            events = list[Event]()
            if (record := parse_line(line)) is not None:
                try:
                    events += derive(record)
                except DAMAGE as e:
                    report(_damaged(str(path), e, f"less {path}"))
            yield events, {"bytes": at, "first": head}


def _run_files(project: Project) -> Iterator[tuple[str, Path]]:
    try:
        names = sorted(entry.name for entry in os.scandir(project.runs_path) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    yield from ((name, RunDirectory(project.runs_path / name).events) for name in names if RUN_NAME.fullmatch(name))


def _of_run(project: Project, source: str, record: Mapping[str, Any]) -> Iterator[Event]:
    run = source.rpartition("/")[2]
    if record.get("event") == "stop" and record.get("status") == "diverged":
        data = {"run": run, "step": record.get("step"), "loss": record.get("loss"), "project": project.root.name}
        yield _event(record, "run.diverged", source, run, _time(record.get("time")), data)


def _of_journal(project: Project, source: str, record: Mapping[str, Any]) -> Iterator[Event]:
    found = Record(**{key: value for key, value in record.items() if key != "digest"})
    yield from _of_record(project, f"{source}/stations/{found.station}", found, str(record.get("digest")))


def _of_record(project: Project, source: str, record: Record, digest: str) -> Iterator[Event]:
    facts, time = record.facts, _time(record.time)
    if not record.station or record.kind not in ("ended", "reported"):
        return
    command = str(facts.get("command") or "")
    error: Any = facts.get("error")
    data = {
        "project": project.root.name, "station": record.station, "attempt": record.attempt, "command": command,
        "exit_code": facts.get("code"), **_reason(error if isinstance(error, Mapping) else facts),
    }  # fmt: skip
    if facts.get("outcome" if record.kind == "ended" else "state") == "failed":
        yield _event(digest, "station.failed", source, record.station, time, data)
    elif facts.get("outcome") == "verdict":
        outputs = facts.get("outputs")
        outputs = outputs if isinstance(outputs, Mapping) else {}
        nodes = unhealthy(outputs) if command.startswith("doctor") else {}
        for host, critical in nodes.items():
            found = {**data, "findings": summaries(critical)}
            yield _event(digest, "node.unhealthy", f"nodes/{host}", host, time, found)
        if command.startswith("monitor"):
            yield _drift(digest, source, time, outputs, data)
        elif not nodes and command not in _OWN_EVENTS:
            gates = [gate for gate in outputs.get("gates") or () if not _passed(gate)]
            found = {key: outputs.get(key) for key in ("run", "model", "reference", "metrics")}
            yield _event(digest, "gate.failed", source, record.station, time, {**data, **found, "gates": gates})


def _of_doctor(project: Project, source: str, record: Mapping[str, Any]) -> Iterator[Event]:
    del source
    if record.get("findings"):
        host, data = str(record.get("host")), {key: record.get(key) for key in ("command", "findings")}
        time, data = _time(record.get("time")), {"project": project.root.name, **data}
        yield _event(record, "node.unhealthy", f"nodes/{host}", host, time, data)


def _of_monitor(project: Project, source: str, record: Mapping[str, Any]) -> Iterator[Event]:
    if record.get("drifted") or record.get("breached"):
        yield _drift(record, source, _time(record.get("time")), record, {"project": project.root.name})


def _drift(record: Any, source: str, time: float, report: Mapping[str, Any], data: Mapping[str, Any]) -> Event:
    facts = {key: report.get(key) for key in (*MONITOR.subject, *MONITOR.facts)}
    return _event(record, "drift", source, str(facts["model"]), time, {**data, **facts})


def _reason(facts: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(facts[key])[:MOST_TEXT] for key in ("what", "why", "hint") if facts.get(key)}


def _passed(gate: Any) -> bool:
    return isinstance(gate, Mapping) and gate.get("passed") is True


def _time(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


# Ledgers. A position is the number of the last entry, with its digest. A ledger without a new entry costs one request.


def _ledger_steps(
    root: Root, model: str, position: Position | None, report: Callable[[AifxError], None]
) -> Iterator[Step]:
    """The entries after a position, one after the other. Raises DamagedLedger, EnvironmentFault."""
    try:
        number, digest = int((position or {}).get("entry", 0)), (position or {}).get("digest")
        ledger = root.ledger(model)
        if position and ledger.store.read(file_name(number + 1)) is None:
            return
        entries = ledger.entries()
        if number > len(entries) or (number and entries[number - 1].digest != digest):
            number = 0  # another registry is at its place
        state = ModelState(model, entries)
        for entry in entries[number:]:
            yield list(entry_events(state, entry)), {"entry": entry.number, "digest": entry.digest}
    except DAMAGE as e:
        report(_damaged(f"the ledger of {model}", e, "aifx registry verify"))


def entry_events(state: ModelState, entry: Entry) -> Iterator[Event]:
    """The events of an entry of a model."""
    if (type := _ACTIONS.get(entry.action)) is None:
        return
    findings: Sequence[Mapping[str, Any]] = entry.facts.get("findings", ())
    previous = entry.facts.get("previous")
    if entry.action in MOVES and previous == state.label(entry.version):
        return  # the alias meant it already
    data = {
        "model": state.name, "alias": entry.alias, "version": f"{state.name}@{state.label(entry.version)}",
        "digest": entry.version, "previous": previous, "actor": entry.actor, "reason": entry.reason,
        "entry": entry.number,
        "failed_rules": [{key: one.get(key) for key in ("rule", "found", "hint")}
                         for one in findings if not _passed(one)],
    }  # fmt: skip
    time = datetime.fromisoformat(entry.time).timestamp()
    yield _event(entry.digest, type, f"registry/models/{state.name}", state.name, time, data)
