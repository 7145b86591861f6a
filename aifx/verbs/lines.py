"""Ticks of a line, its state, and decisions of people on its stations."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import AifxError, ErrorDocument, ExitCode, UsageError, did_you_mean
from aifx.core.files import user_name
from aifx.core.lifecycle import exit_code_of
from aifx.core.project import Project, find_project
from aifx.core.redaction import redact_arguments
from aifx.core.results import Result
from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.lines.file import Line, Station
    from aifx.lines.runner import TickRun
    from aifx.lines.state import StationState
    from aifx.lines.tick import Decision

Report = Callable[[str], None]


@dataclass(frozen=True)
class StationTick:
    """What became of a station in a tick.

    Attributes:
        state: ready, running, pending, done, verdict, failed, skipped, waiting, blocked, paused or left out.
        why: in a few words, for people.
        key: digest of what it works on; empty if that is not known yet.
        commands: words of each command that would start; empty unless the station is ready.
        what: the error, if it failed.
        hint: a command that lets it go on.
    """

    station: str
    state: str
    why: str
    key: str
    commands: tuple[tuple[str, ...], ...]
    what: str
    hint: str


@dataclass(frozen=True)
class LineTick(Result):
    """A tick of a line.

    Attributes:
        file: of the line.
        tick: the time that it is for, such as "20261202T130000.000Z".
        stations: parents first.
        is_planned: whether this is what --dry-run found.
        stopped_by: number of the signal that stopped it; what it left open is adopted by the next tick.
    """

    file: str
    tick: str
    stations: tuple[StationTick, ...]
    is_planned: bool = False
    stopped_by: int | None = None

    @property
    def exit_code(self) -> ExitCode:
        if self.stopped_by is not None:
            return exit_code_of(self.stopped_by)
        states = {one.state for one in self.stations}
        return ExitCode.UNABLE if "failed" in states else ExitCode.VERDICT if "verdict" in states else ExitCode.OK


@dataclass(frozen=True)
class StationStatus:
    """The state of a station between two ticks, or while one runs.

    Attributes:
        state: as of a tick; "ready" if the next tick starts it.
        since: Unix time at which the attempt that runs began, or the last one ended; null if it never ran.
        why: what it waits for, or why it does not run.
        verdict: outcome of its last end: done, verdict, failed or skipped; empty if there is none.
        next: Unix time at which it may begin, or begin again, if that is known.
        attempt: the one that runs, or the last one; empty if it never ran.
        what: the error, if it failed.
        hint: a command that lets it go on.
    """

    station: str
    state: str
    since: float | None
    why: str
    verdict: str
    next: float | None
    attempt: str
    what: str
    hint: str


@dataclass(frozen=True)
class LineStatus(Result):
    """The state of a line.

    Attributes:
        next: Unix time of the next tick that `every` asks for; null without `every`.
        is_paused: the whole line is.
        is_open: a tick has begun and not ended: it runs, or the next call goes on with it.
        problem: why it is not known what the next tick starts, such as a store that cannot be reached.
    """

    file: str
    stations: tuple[StationStatus, ...]
    next: float | None
    is_paused: bool
    is_open: bool
    problem: ErrorDocument | None = None


def line_run(
    *,
    file: StrPath | None = None,
    select: Sequence[str] = (),
    allow_shell: bool = False,
    dry_run: bool = False,
    stop: Sequence[int] = (),
    on_line: Report = lambda text: None,
    project: StrPath = ".",
) -> LineTick:
    """Run one tick of a line: start the stations that are due, in order, and wait for them.

    Args:
        file: of the line; by default line.toml of the project.
        select: stations that may run, such as "train", or "train+" with all that follows it; by default all.
        allow_shell: run stations with `shell = true`, which start any program.
        dry_run: report what would start, and why, and write nothing.
        stop: numbers of signals. As soon as it has one, the tick ends; what runs is left to the next tick.
        on_line: called with each thing that happens.
        project: a folder in the project.

    Example:
        >>> [(one.station, one.state) for one in aifx.line_run().stations]
        [('keys', 'done'), ('release', 'waiting')]
    """
    from aifx.lines.runner import Settings, TickRun, held
    from aifx.lines.tick import select as selected

    line, found = _open(file, project)
    settings = Settings(
        os.environ, time.time(), selected(line.stations, select), allow_shell,
        should_stop=lambda: bool(stop), report=on_line,
    )  # fmt: skip
    with nullcontext() if dry_run else held(line):
        run = TickRun(line, found, settings)
        made = run.plan() if dry_run else run.run()
    return LineTick(str(line.path), run.tick, _ticked(made), dry_run, stop[0] if stop else None)


def line_status(*, file: StrPath | None = None, project: StrPath = ".") -> LineStatus:
    """Report the state of a line and of each station. Starts and writes nothing.

    Args:
        file: of the line; by default line.toml of the project.
        project: a folder in the project.

    Example:
        >>> [(one.station, one.state, one.verdict) for one in aifx.line_status().stations]
        [('keys', 'done', 'done'), ('release', 'waiting', '')]
    """
    from aifx.lines.schedule import next_start

    line, found = _open(file, project)
    run, made, problem = _look(line, found)
    now = time.time()
    following = None if line.every_s is None else next_start(now, line.every_s, line.timezone)
    stations = tuple(
        _status(line, station, run.state.of(name), made.get(name), now) for name, station in line.stations.items()
    )
    is_open = run.state.tick is not None
    return LineStatus(str(line.path), stations, following, run.state.paused is not None, is_open, problem)


def _open(file: StrPath | None, project: StrPath) -> tuple[Line, Project]:
    """The line of a file, and its project. Raises UsageError, ConfigError with the place of each mistake."""
    from aifx.lines.file import LINE, read_line

    found = find_project(Path(project))
    return read_line(Path(file).absolute() if file is not None else found.root / LINE), found


def _look(line: Line, project: Project) -> tuple[TickRun, Mapping[str, Decision], ErrorDocument | None]:
    """What a tick would decide where the line runs: programs are allowed, and the environment is there."""
    from aifx.lines.runner import Settings, TickRun

    asked = {name: "" for one in line.stations.values() for name in one.environment if not name.startswith("file:")}
    run = TickRun(line, project, Settings({**asked, **os.environ}, time.time(), allows_shell=True))
    try:
        return run, run.plan(), None
    except AifxError as e:
        return run, {}, e.document()


def _ticked(made: Mapping[str, Decision]) -> tuple[StationTick, ...]:
    return tuple(
        StationTick(
            name, one.state, one.why, one.key, tuple(tuple(redact_arguments(words)) for words in one.commands),
            one.what, one.hint,
        )
        for name, one in made.items()
    )  # fmt: skip


def _status(line: Line, station: Station, own: StationState, made: Decision | None, now: float) -> StationStatus:
    last, verdict, since = own.last, "" if own.last is None else own.last.outcome, None
    attempt = own.open.attempt if own.open is not None else "" if last is None else last.attempt
    state, why, what, hint = (verdict or "unknown", "", "", "") if made is None else (
        made.state, made.why, made.what, made.hint
    )  # fmt: skip
    if own.report is not None and state == "ready" and not own.asks_for:  # where the line runs, it failed
        error = own.report.facts["error"]
        state, why, what, hint = "failed", error["why"], error["what"], error["hint"]
    if own.open is not None:
        since = own.open.began
    elif own.report is not None and state in ("failed", "waiting"):
        since = own.report.time
    elif state == "paused" and own.paused is not None:
        since = own.paused.time
    elif last is not None:
        since = last.time
    return StationStatus(station.name, state, since, why, verdict, _next(line, station, own, state, now), attempt,
                         what, hint)  # fmt: skip


def _next(line: Line, station: Station, own: StationState, state: str, now: float) -> float | None:
    """When a station may begin, as far as times decide it."""
    from aifx.lines.schedule import next_start, parse_duration

    if own.open is not None:
        return own.open.not_before if own.open.not_before > now else None
    if state == "skipped":
        periods = [parse_duration(term.subject) for term in station.condition.terms() if term.kind == "every"]
        return min((next_start(now, period, line.timezone) for period in periods), default=None)
    if state == "ready" and line.every_s is not None:
        return next_start(now, line.every_s, line.timezone)
    return None
