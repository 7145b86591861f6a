"""Decisions of people on the stations of a line, and what the line did."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aifx.core.errors import AifxError, EnvironmentFault, ErrorDocument, UsageError, did_you_mean
from aifx.core.files import user_name
from aifx.core.redaction import redact_arguments
from aifx.core.results import Result
from aifx.verbs.arguments import StrPath
from aifx.verbs.line_ticks import look, open_line

if TYPE_CHECKING:
    from aifx.core.project import Project
    from aifx.lines.file import Line, Place
    from aifx.lines.journal import Kind, Record
    from aifx.lines.runner import TickRun
    from aifx.lines.state import StationState
    from aifx.lines.tick import Decision

SHOWN_LINES = 1000
"""Lines of a job's output that `line logs` shows, the last ones."""


@dataclass(frozen=True)
class LineEvent:
    """A record of a line's journal.

    Attributes:
        number: from 1.
        time: Unix time.
        kind: tick, started, repeated, ended, reported, approved, retry, skip, paused or resumed.
        station: empty if it is about the whole line.
        outcome: of an end: done, verdict or failed; of a report, the state; otherwise empty.
        code: exit code of the last command, of an end.
        duration_s: of an attempt that ended.
        why: reason of a person, or the error.
    """

    number: int
    time: float
    kind: str
    station: str
    attempt: str
    outcome: str
    code: int | None
    duration_s: float | None
    why: str


@dataclass(frozen=True)
class LineHistory(Result):
    """What a line did, newest first."""

    file: str
    records: tuple[LineEvent, ...]


@dataclass(frozen=True)
class CommandLog:
    """What a command of an attempt wrote, up to a limit."""

    words: tuple[str, ...]
    stdout: str
    stderr: str


@dataclass(frozen=True)
class StationLogs(Result):
    """What the last attempt of a station wrote.

    Attributes:
        number: of its try, from 1.
        commands: with the output of the job, if a cluster runs the station.
        code: exit code of its last command; null while it runs.
    """

    station: str
    attempt: str
    number: int
    commands: tuple[CommandLog, ...]
    code: int | None


@dataclass(frozen=True)
class LineDecision(Result):
    """A person's decision, as the journal has it.

    Attributes:
        kind: approved, retry, skip, paused or resumed.
        station: empty if it is about the whole line.
        key: digest of the work that it is about; empty for a pause.
        by: the person.
    """

    kind: str
    station: str
    key: str
    by: str
    reason: str


def line_history(
    station: str | None = None, *, limit: int | None = None, file: StrPath | None = None, project: StrPath = "."
) -> LineHistory:
    """List what a line did, newest first. Starts and writes nothing.

    Args:
        station: only records of this station.
        limit: number of records; by default all.
        file: of the line; by default line.toml of the project.
        project: a folder in the project.

    Example:
        >>> [(one.station, one.outcome) for one in aifx.line_history("keys").records]
        [('keys', 'done'), ('keys', '')]
    """
    from aifx.lines.journal import Journal
    from aifx.lines.runner import folder_of

    line, _ = open_line(file, project)
    records = Journal(folder_of(line)).records()
    if station is not None and not any(one.station == station for one in records):
        _check_station(line, station)
    found = [one for one in reversed(records) if station in (None, one.station)][:limit]
    return LineHistory(str(line.path), tuple(_event(one) for one in found))


def line_logs(station: str, *, file: StrPath | None = None, project: StrPath = ".") -> StationLogs:
    """Return what the last attempt of a station wrote. It may still run.

    Args:
        station: its name.
        file: of the line; by default line.toml of the project.
        project: a folder in the project.

    Example:
        >>> aifx.line_logs("keys").code
        0
    """
    from aifx.lines.journal import Journal
    from aifx.lines.runner import ATTEMPTS, commands_of, folder_of
    from aifx.lines.running import Exit, Try
    from aifx.lines.state import fold

    line, root = open_line(file, project)
    journal = Journal(folder_of(line))
    state = fold(one for one in journal.records() if one.station == station).of(station)
    tries = [one for one in journal.records() if one.station == station and one.kind in ("started", "repeated")]
    if not tries:
        _check_station(line, station)
        raise UsageError(f"{station} has never run", "it has no attempt", "aifx line status")
    last = tries[-1]
    one = Try(journal.folder / ATTEMPTS, last.attempt, int(last.facts["number"]))
    found = one.look()
    try:
        commands = commands_of(one)
    except (OSError, ValueError) as e:
        raise UsageError(f"{one.path.parent} is gone", str(e).splitlines()[0], f"aifx line history {station}") from None
    program = () if station in line.stations and line.stations[station].shell else ("aifx",)
    logs = tuple(
        CommandLog((*program, *redact_arguments(words)), _text(one.output(number)), _text(one.errors(number)))
        for number, words in enumerate(commands, 1)
    )
    code = found.code if isinstance(found, Exit) else None
    on = next(begun.facts.get("on", "local") for begun in tries if begun.attempt == last.attempt)
    if on != "local" and code == 0:  # it was submitted
        code = None if state.open is not None or state.last is None else state.last.code
        logs = (*logs, _job_log(root, on, f"{last.attempt}-{last.facts.get('job', 1)}"))
    return StationLogs(station, one.attempt, one.number, logs, code)


def _job_log(project: Project, on: Place, request: str) -> CommandLog:
    """What a job has written, or why that is not known."""
    from aifx.lines.jobs import Job

    job = Job(project, on, request)
    try:
        lines, error = job.log(most=SHOWN_LINES) if job.is_recorded() else [], ""
    except EnvironmentFault as e:
        lines, error = [], f"{e.what}: {e.why}"
    return CommandLog(("launch", "logs", job.launch), _text(b"\n".join(lines)), error)


def line_retry(station: str, *, reason: str = "", file: StrPath | None = None, project: StrPath = ".") -> LineDecision:
    """Let the next tick try a station again that failed, had a bad verdict or was skipped.

    A station that failed is tried under the same id, so that effects that it had are not repeated.

    Args:
        station: its name.
        reason: for the history.
        file: of the line; by default line.toml of the project.
        project: a folder in the project.

    Example:
        >>> aifx.line_retry("release").kind  # it was skipped
        'retry'
    """
    run, made, _ = _look(station, file, project)
    own = run.state.of(station)
    _refuse_running(station, own)
    decision = made.get(station)
    end = own.last if decision is None else own.ends.get(decision.key, own.last)
    if end is None or end.outcome == "done":
        why = "it has never run" if end is None else "its last attempt is done"
        if own.report is not None:
            why = "it was not started; each tick looks at it again"
        raise UsageError(f"{station} has nothing to retry", why, "aifx line run")
    return _write(run, "retry", station, end.key, reason)


def line_skip(station: str, *, reason: str = "", file: StrPath | None = None, project: StrPath = ".") -> LineDecision:
    """Let a station count as ended for the work that it would do now, or let its bad verdict pass.

    Later stations use the outputs of the work whose verdict passes. Of other work, they use the station's last outputs
    that had no bad verdict. A verdict that passes delays no later work, and other work that is skipped lets none pass.

    Args:
        station: its name.
        reason: for the history.
        file: of the line; by default line.toml of the project.
        project: a folder in the project.

    Example:
        >>> aifx.line_skip("release", reason="a holiday").kind
        'skip'
    """
    run, made, problem = _look(station, file, project)
    _refuse_running(station, run.state.of(station))
    if problem is not None:
        raise AifxError(problem["what"], problem["why"], problem["hint"], transient=problem["transient"])
    decision = made[station]
    if not decision.key or decision.state in ("done", "pending", "skipped"):
        why = f"it is {decision.state} {decision.why}".strip()
        raise UsageError(f"{station} has nothing to skip", why, "aifx line status")
    return _write(run, "skip", station, decision.key, reason)


def line_approve(
    station: str, *, reason: str = "", file: StrPath | None = None, project: StrPath = "."
) -> LineDecision:
    """Approve the work that a station waits with. Other work of it is asked for again.

    Args:
        station: its name.
        reason: for the history.
        file: of the line; by default line.toml of the project.
        project: a folder in the project.

    Example:
        >>> aifx.line_approve("release", reason="read it").kind
        'approved'
    """
    run, made, _ = _look(station, file, project)
    own = run.state.of(station)
    if not own.asks_for:
        state = "running" if own.open is not None else made[station].state if station in made else "unknown"
        why = f'it is {state}; a tick asks before it starts a station with ask = "approval"'
        raise UsageError(f"{station} waits for no approval", why, "aifx line run")
    return _write(run, "approved", station, own.asks_for, reason)


def line_pause(
    station: str | None = None, *, reason: str = "", file: StrPath | None = None, project: StrPath = "."
) -> LineDecision:
    """Start nothing more of a line, or of a station, until `line_resume`. What runs goes on.

    Args:
        station: its name; by default the whole line.
        reason: for the history and the status.
        file: of the line; by default line.toml of the project.
        project: a folder in the project.

    Example:
        >>> aifx.line_pause(reason="maintenance").kind
        'paused'
    """
    return _pause("paused", station, reason, file, project)


def line_resume(
    station: str | None = None, *, reason: str = "", file: StrPath | None = None, project: StrPath = "."
) -> LineDecision:
    """End a pause of a line or of a station.

    Args:
        station: its name; by default the whole line.
        reason: for the history.
        file: of the line; by default line.toml of the project.
        project: a folder in the project.

    Example:
        >>> aifx.line_resume().kind
        'resumed'
    """
    return _pause("resumed", station, reason, file, project)


def _event(record: Record) -> LineEvent:
    facts = record.facts
    error = facts.get("error") or {}
    why = ": ".join(part for part in (error.get("what", ""), error.get("why", "")) if part)
    outcome = str(facts.get("outcome") or (facts.get("state") if record.kind == "reported" else "") or "")
    return LineEvent(
        record.number, record.time, record.kind, record.station, record.attempt, outcome, facts.get("code"),
        facts.get("duration_s"), why or str(facts.get("why") or facts.get("reason") or ""),
    )  # fmt: skip


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _check_station(line: Line, name: str) -> None:
    if name not in line.stations:
        raise UsageError(f"the line has no station {name!r}", did_you_mean(name, line.stations), "aifx line status")


def _look(
    station: str, file: StrPath | None, project: StrPath
) -> tuple[TickRun, Mapping[str, Decision], ErrorDocument | None]:
    line, found = open_line(file, project)
    _check_station(line, station)
    return look(line, found)


def _refuse_running(name: str, own: StationState) -> None:
    if own.open is not None:
        raise UsageError(f"{name} is running", f"attempt {own.open.attempt} has not ended", f"aifx line logs {name}")


def _write(run: TickRun, kind: Kind, station: str, key: str, reason: str) -> LineDecision:
    by = user_name(os.getuid())
    run.journal.append(kind, station, key, by=by, reason=reason)
    return LineDecision(kind, station, key, by, reason)


def _pause(kind: Kind, station: str | None, reason: str, file: StrPath | None, project: StrPath) -> LineDecision:
    from aifx.lines.runner import Settings, TickRun

    line, found = open_line(file, project)
    if station is not None:
        _check_station(line, station)
    run = TickRun(line, found, Settings(os.environ, time.time()))
    before = run.state.paused if station is None else run.state.of(station).paused
    if (before is not None) == (kind == "paused"):
        state = "paused already" if before else "not paused"
        raise UsageError(f"{station or 'the line'} is {state}", "", "aifx line status")
    return _write(run, kind, station or "", "", reason)
