"""The state of each station: a fold over the records of the journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aifx.lines.bindings import TICK
from aifx.lines.file import MOST_PER_DAY, Place
from aifx.lines.journal import Record

Outcome = Literal["done", "verdict", "failed", "skipped"]
"""The outcome of an attempt; "skipped" is a person's decision."""
KEPT_TIMES = MOST_PER_DAY
"""Begins and starts of a station that are kept, the last ones: a budget counts as many, a condition only the last."""


@dataclass(frozen=True)
class Ended:
    """The last end of a station with a key.

    Attributes:
        code: exit code of the last command; None if nothing was run.
        outputs: the document of the last command, as far as it was kept.
        identity: the part of it that the keys of later stations depend on.
        error: `what`, `why` and `hint` of one that failed.
        tries: number of the last try.
        job: number of the job that one more try submits, if a cluster runs the station.
    """

    key: str
    attempt: str
    outcome: Outcome
    time: float
    code: int | None = None
    outputs: Mapping[str, Any] = field(default_factory=dict)
    identity: Any = None
    error: Mapping[str, str] = field(default_factory=dict)
    duration_s: float = 0.0
    tries: int = 0
    job: int = 1


@dataclass(frozen=True)
class Open:
    """An attempt that has begun and whose end was not seen.

    Attributes:
        began: Unix time of its first try.
        since: Unix time of the record that this try rests on.
        number: of the try, from 1.
        not_before: Unix time at which the try may begin.
        failures: number of tries before it that ended in a way that is tried again.
        seen: what names meant in the tick that it began in.
        why: why the try before it was not the last one.
        on: where it runs, as in `aifx.lines.file.Place`.
        job: number of the job that it submits, if a cluster runs it. A try of a submission has the same job.
    """

    key: str
    attempt: str
    began: float
    since: float
    number: int = 1
    not_before: float = 0.0
    failures: int = 0
    seen: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    on: Place = "local"
    job: int = 1

    @property
    def job_request(self) -> str:
        """The id that its job is submitted with."""
        return f"{self.attempt}-{self.job}"

    def outlives(self, tick: str) -> bool:
        """Whether a cluster runs it, and it began in an earlier tick. `tick`: the time of the present one."""
        return self.on != "local" and self.seen.get(TICK) != tick


@dataclass
class StationState:
    """What the journal says of a station.

    Attributes:
        ends: the last end with each key, in the order in which they came.
        last: the last end.
        last_usable: the last end whose outputs other stations may use.
        seen: what names meant in the tick in which the attempt of the last usable end began.
        begins: Unix times of the last begins whose ends can be used, and of decisions to skip it before that.
        starts: Unix times at which the last attempts began.
        again: attempts that a person wants to be repeated, by key.
        report: the record that says why it does not go on, as long as nothing else came after it.
        paused: the record of a pause.
        late: the time of the tick in which an attempt of an earlier tick ended; empty if the last one ended in its own.
    """

    open: Open | None = None
    ends: dict[str, Ended] = field(default_factory=dict)
    last: Ended | None = None
    last_usable: Ended | None = None
    seen: Mapping[str, str] = field(default_factory=dict)
    begins: list[float] = field(default_factory=list)
    approved: set[str] = field(default_factory=set)
    starts: list[float] = field(default_factory=list)
    again: dict[str, Ended] = field(default_factory=dict)
    report: Record | None = None
    paused: Record | None = None
    late: str = ""

    @property
    def asks_for(self) -> str:
        """The key for which an approval was asked and not given yet."""
        return self.report.key if self.report is not None and self.report.facts.get("asks") else ""


@dataclass
class LineState:
    """What the journal says of the line.

    Attributes:
        tick: the record of the tick that has begun and not ended, if there is one.
        bindings: what names meant in the last tick.
        paused: the record of a pause of the whole line.
    """

    stations: dict[str, StationState] = field(default_factory=dict)
    tick: Record | None = None
    bindings: Mapping[str, str] = field(default_factory=dict)
    paused: Record | None = None

    def of(self, name: str) -> StationState:
        return self.stations.setdefault(name, StationState())

    def outcome_of(self, name: str) -> str:
        """The outcome of the last end of a station; empty if it never ended."""
        last = self.of(name).last
        return "" if last is None else last.outcome


def fold(records: Iterable[Record], line: LineState | None = None) -> LineState:
    """The state after records, which come after those of `line`, if that is given. It is changed in place."""
    line = LineState() if line is None else line
    for record in records:
        if record.kind == "tick":
            line.tick = None if record.facts.get("is_over") else record
            line.bindings = record.facts.get("bindings", line.bindings)
        elif record.station:
            _apply(line.of(record.station), record, line.bindings)
        elif record.kind in ("paused", "resumed"):
            line.paused = record if record.kind == "paused" else None
    return line


def _apply(station: StationState, record: Record, bindings: Mapping[str, str]) -> None:
    key, facts = record.key, record.facts
    if record.kind in ("started", "ended", "retry", "skip", "approved"):
        station.report = None
    match record.kind:
        case "started":
            number, on, job = facts["number"], facts.get("on", "local"), facts.get("job", 1)
            station.open = Open(key, record.attempt, record.time, record.time, number, seen=bindings, on=on, job=job)
            _keep(station.starts, record.time)
            station.again.pop(key, None)
        case "repeated":
            before = station.open
            assert before is not None
            number, not_before, failures = facts["number"], facts["not_before"], before.failures + 1
            station.open = replace(
                before, since=record.time, number=number, not_before=not_before, failures=failures, why=facts["why"],
                job=facts.get("job", before.job),
            )  # fmt: skip
        case "ended":
            opened, station.open = station.open, None
            names = ("outcome", "code", "outputs", "identity", "error", "duration_s", "tries", "job")
            end = Ended(key, record.attempt, time=record.time, **{n: facts[n] for n in names if n in facts})
            is_late = opened is not None and opened.outlives(bindings.get(TICK, ""))
            station.late = bindings.get(TICK, "") if is_late else ""
            if end.outcome != "failed" and opened is not None:
                station.seen = opened.seen
                _keep(station.begins, opened.began)
            _end(station, end)
        case "skip":
            passed = station.ends.get(key)
            if passed is None or passed.outcome != "verdict":  # other work, to which an earlier verdict says nothing
                good = (end for end in reversed(station.ends.values()) if end.outcome in ("done", "skipped"))
                passed, station.seen = next(good, None), bindings
                _keep(station.begins, record.time)
            outputs, identity = ({}, None) if passed is None else (passed.outputs, passed.identity)
            _end(station, Ended(key, "", "skipped", record.time, outputs=outputs, identity=identity))
        case "retry":
            end_of_key = station.ends.pop(key, None)
            if end_of_key is not None and end_of_key.outcome == "failed":
                station.again[key] = end_of_key
        case "reported":
            station.report = record
        case "approved":
            station.approved.add(key)
        case "paused":
            station.paused = record
        case "resumed":
            station.paused = None


def _keep(times: list[float], time: float) -> None:
    times.append(time)
    del times[:-KEPT_TIMES]


def _end(station: StationState, end: Ended) -> None:
    station.ends.pop(end.key, None)
    station.ends[end.key] = station.last = end
    if end.outcome != "failed":
        station.last_usable = end
