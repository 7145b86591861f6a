"""Ticks of a line, and its state."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import AifxError, ErrorDocument, ExitCode, UsageError
from aifx.core.lifecycle import exit_code_of
from aifx.core.project import Project, find_project
from aifx.core.redaction import redact_arguments
from aifx.core.results import Result
from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.lines.delivery import Deliveries
    from aifx.lines.file import Line, Station
    from aifx.lines.runner import TickRun
    from aifx.lines.state import Open, StationState
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
        next: Unix time of the next tick that `every` asks for; null without `every`.
    """

    file: str
    tick: str
    stations: tuple[StationTick, ...]
    is_planned: bool = False
    stopped_by: int | None = None
    next: float | None = None

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
        on: where it runs: local, slurm or k8s. `why` has the state of its job.
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
    on: str


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

    line, found = open_line(file, project)
    settings = Settings(
        os.environ, time.time(), selected(line.stations, select), allow_shell,
        should_stop=lambda: bool(stop), report=on_line,
    )  # fmt: skip
    with nullcontext() if dry_run else held(line), closing(TickRun(line, found, settings)) as run:
        made = run.plan() if dry_run else run.run()
    stations, following = _ticked(line, made, file), _following(line, time.time())
    return LineTick(str(line.path), run.tick, stations, dry_run, stop[0] if stop else None, following)


def line_status(*, file: StrPath | None = None, project: StrPath = ".") -> LineStatus:
    """Report the state of a line and of each station. Starts and writes nothing.

    Args:
        file: of the line; by default line.toml of the project.
        project: a folder in the project.

    Example:
        >>> [(one.station, one.state, one.verdict) for one in aifx.line_status().stations]
        [('keys', 'done', 'done'), ('release', 'waiting', '')]
    """
    return status_of(*open_line(file, project), file)


def status_of(line: Line, found: Project, file: StrPath | None) -> LineStatus:
    """The state of a line of a project. Its hints name the file, if there is one."""
    run, made, problem = look(line, found)
    now = time.time()
    following = _following(line, now)
    jobs = _job_states(found, {name: run.state.of(name).open for name in line.stations})
    states = (
        _status(line, jobs.get(name, ""), station, run.state.of(name), made.get(name), now)
        for name, station in line.stations.items()
    )
    stations = tuple(replace(one, hint=with_file(one.hint, file)) for one in states)
    is_open = run.state.tick is not None
    return LineStatus(str(line.path), stations, following, run.state.paused is not None, is_open, problem)


def open_line(file: StrPath | None, project: StrPath) -> tuple[Line, Project]:
    """The line of a file, and its project. Raises UsageError, ConfigError with the place of each mistake."""
    from aifx.lines.file import LINE, read_line

    found = find_project(Path(project))
    return read_line(Path(file).absolute() if file is not None else found.root / LINE), found


def look(line: Line, project: Project) -> tuple[TickRun, Mapping[str, Decision], ErrorDocument | None]:
    """What a tick would decide where the line runs: programs are allowed, and the environment is there."""
    from aifx.lines.runner import Settings, TickRun

    asked = {name: "" for one in line.stations.values() for name in one.environment if not name.startswith("file:")}
    run = TickRun(line, project, Settings({**asked, **os.environ}, time.time(), allows_shell=True))
    try:
        return run, run.plan(), None
    except AifxError as e:
        return run, {}, e.document()


def with_file(text: str, file: StrPath | None) -> str:
    """A hint whose commands name the file of the line, if the call did."""
    if file is None or "--file" in text:
        return text
    option = f" --file {shlex.quote(str(file))}"
    return re.sub(r"\baifx (?:line|notify) [a-z0-9]+", lambda command: command[0] + option, text)


def _following(line: Line, now: float) -> float | None:
    """When the next period begins; None without periods."""
    from aifx.lines.schedule import next_start

    return None if line.every_s is None else next_start(now, line.every_s, line.timezone)


def _ticked(line: Line, made: Mapping[str, Decision], file: StrPath | None) -> tuple[StationTick, ...]:
    def commands(name: str, one: Decision) -> tuple[tuple[str, ...], ...]:
        program = () if line.stations[name].shell else ("aifx",)
        return tuple((*program, *redact_arguments(words)) for words in one.commands)

    return tuple(
        StationTick(name, one.state, one.why, one.key, commands(name, one), one.what, with_file(one.hint, file))
        for name, one in made.items()
    )


def _status(
    line: Line, job: str, station: Station, own: StationState, made: Decision | None, now: float
) -> StationStatus:
    last, verdict, since = own.last, "" if own.last is None else own.last.outcome, None
    attempt = own.open.attempt if own.open is not None else "" if last is None else last.attempt
    state, why, what, hint = (verdict or "unknown", "", "", "") if made is None else (
        made.state, made.why, made.what, made.hint
    )  # fmt: skip
    if own.report is not None and state == "ready" and not own.asks_for:  # where the line runs, it failed
        error = own.report.facts["error"]
        state, why, what, hint = "failed", error["why"], error["what"], error["hint"]
    on = station.on
    if own.open is not None:
        since, on = own.open.began, own.open.on
        why = job or why
    elif own.report is not None and state in ("failed", "waiting"):
        since = own.report.time
    elif state == "paused" and own.paused is not None:
        since = own.paused.time
    elif last is not None:
        since = last.time
    return StationStatus(station.name, state, since, why, verdict, _next(line, station, own, state, now), attempt,
                         what, hint, on)  # fmt: skip


def _job_states(project: Project, opened: Mapping[str, Open | None]) -> dict[str, str]:
    """What the schedulers say of the jobs of open attempts, by station."""
    submitted = {name: one for name, one in opened.items() if one is not None and one.on != "local"}
    if not submitted:
        return {}
    from aifx.lines.jobs import Job, look_at

    jobs = {name: Job(project, one.on, one.job_request) for name, one in submitted.items()}
    look_at(recorded := [job for job in jobs.values() if job.is_recorded()])
    return {
        name: f"its job is being submitted to {job.on}" if job not in recorded
        else job.text or (job.end.stopped if job.end is not None else "")
        for name, job in jobs.items()
    }  # fmt: skip


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


@dataclass(frozen=True)
class Backfill(Result):
    """Ticks that were made up for, or with --dry-run the times of them."""

    ticks: tuple[LineTick, ...]
    times: tuple[float, ...]
    is_planned: bool = False

    @property
    def exit_code(self) -> ExitCode:
        codes = {one.exit_code for one in self.ticks}
        order = (ExitCode.INTERRUPTED, ExitCode.PREEMPTED, ExitCode.UNABLE, ExitCode.VERDICT)
        return next((code for code in order if code in codes), ExitCode.OK)


def line_backfill(
    begin: str,
    end: str,
    *,
    file: StrPath | None = None,
    allow_shell: bool = False,
    dry_run: bool = False,
    stop: Sequence[int] = (),
    on_line: Report = lambda text: None,
    project: StrPath = ".",
) -> Backfill:
    """Run the ticks of a time that has passed, the oldest first. Work that is done already is not done again.

    Args:
        begin: date or time, such as "2026-12-01" or "2026-12-01T06:00", in the line's time zone.
        end: date or time up to which, and with which, ticks are run.
        file: of the line; by default line.toml of the project.
        allow_shell: run stations with `shell = true`, which start any program.
        dry_run: list the times, and do nothing.
        stop: numbers of signals. As soon as it has one, the tick ends; what runs is left to the next tick.
        on_line: called with each thing that happens.
        project: a folder in the project.

    Example:
        >>> len(aifx.line_backfill("2026-11-01", "2026-11-03", dry_run=True).times)
        3
    """
    from aifx.lines.runner import Settings, TickRun, held

    line, found = open_line(file, project)
    times = _times(line, begin, end)
    if dry_run:
        return Backfill((), times, is_planned=True)
    ticks = list[LineTick]()
    with held(line):
        left, is_first = list(times), True
        while left and not stop:
            settings = Settings(
                os.environ, left[0], allows_shell=allow_shell, is_past=True, should_stop=lambda: bool(stop),
                report=on_line,
            )  # fmt: skip
            run = TickRun(line, found, settings)
            # A tick that was interrupted comes first, and otherwise one of now if earlier ones have left jobs.
            is_another = run.state.tick is not None and run.state.tick.facts["line"] == line.digest
            if is_first and not is_another and run.has_jobs:
                run.settings, is_another = replace(settings, now=time.time()), True
            with closing(run):
                is_first, made = False, run.run()
            on_line(f"tick {run.tick} is over")
            if not is_another:
                ticks.append(
                    LineTick(str(line.path), run.tick, _ticked(line, made, file), False, stop[0] if stop else None)
                )
                left.pop(0)
    return Backfill(tuple(ticks), times)


_SIZE = re.compile(r"[0-9.]+ [kMGT]?B\b")
SEND_S = 60.0
"""Between two deliveries of events while a line waits."""
LOOK_S = 0.5


def line_watch(
    *,
    file: StrPath | None = None,
    allow_shell: bool = False,
    stop: Sequence[int] = (),
    on_line: Report = lambda text: None,
    project: StrPath = ".",
) -> None:
    """Run a tick per period until a signal comes, and send the events of the line's targets.

    Ticks that were missed become one. A decision of a person, such as an approval, begins a tick at once. The file is
    read again for each tick. An error is reported, and the next tick begins in its period.

    Args:
        file: of the line; by default line.toml of the project.
        allow_shell: run stations with `shell = true`, which start any program.
        stop: numbers of signals. As soon as it has one, the tick ends; what runs is left to the next tick.
        on_line: called with each thing that happens.
        project: a folder in the project.

    Example:
        >>> aifx.line_watch(stop=[15])
    """
    from aifx.lines.runner import Settings, TickRun, held

    line, found = open_line(file, project)
    if line.every_s is None:
        why = "aifx line watch ticks once per period"
        raise UsageError(f"{line.path} has no period", why, 'write every = "1h" below [line], or: aifx line run')
    sender = _Sender(found, line.path, on_line, with_file("aifx notify ls", file))
    reported, begins = "", deque[float](maxlen=1000)
    while not stop:
        begins.append(began := time.time())
        with ExitStack() as asking:
            run = None
            try:
                line = open_line(file, project)[0]
                settings = Settings(
                    os.environ, began, allows_shell=allow_shell, should_stop=lambda: bool(stop), report=on_line,
                    while_waiting=sender.send_if_due,
                )  # fmt: skip
                with held(line):
                    run = asking.enter_context(closing(TickRun(line, found, settings)))
                    run.run()
                reported = ""
            except AifxError as e:
                run = None  # what it would decide is not known before the next period
                subject = _SIZE.sub("", str(e))  # the room on a full disk is another one each time
                if subject != reported:
                    on_line(f"the tick ended: {e.what}: {e.why}" + (f"; {with_file(e.hint, file)}" if e.hint else ""))
                reported = subject
            if not stop:
                sender.send()
                _wait(line, begins, stop, sender, run)


def _wait(line: Line, begins: Iterable[float], stop: Sequence[int], sender: _Sender, run: TickRun | None) -> None:
    """Wait for the next period, a record of another process, or a signal."""
    from aifx.lines.journal import JOURNAL
    from aifx.lines.runner import folder_of
    from aifx.lines.schedule import is_due

    path = folder_of(line) / JOURNAL
    size = path.stat().st_size if path.exists() else 0
    with suppress(AifxError, OSError):  # the next tick reports it
        if run is not None and run.has_news():
            return
    every_s = line.every_s or 3600.0  # the period may have been removed from the file meanwhile
    while not stop and not is_due(begins, time.time(), every_s, line.timezone):
        with suppress(AifxError, OSError):
            if (path.exists() and path.stat().st_size != size) or (run is not None and run.has_ended_job()):
                return
        sender.send_if_due()
        time.sleep(LOOK_S)


class _Sender:
    """Sends events of a line's targets, and reports each failure once."""

    def __init__(self, project: Project, path: Path, on_line: Report, hint: str = "aifx notify ls") -> None:
        self.project, self.path, self.on_line, self.hint = project, path, on_line, hint
        self._at, self._reported = 0.0, dict[str, str]()

    def send_if_due(self) -> None:
        if time.monotonic() - self._at >= SEND_S:
            self.send()

    def send(self) -> None:
        from aifx.lines.bindings import locate
        from aifx.lines.delivery import deliver
        from aifx.lines.file import read_targets

        try:
            targets = read_targets(self.path)
            texts = self._texts(deliver(locate(self.project), targets, os.environ, limit_s=20)) if targets else {}
        except AifxError as e:
            texts = {"": f"{e.what}: {e.why}"}
        finally:
            self._at = time.monotonic()
        for subject, text in texts.items():
            if text != self._reported.get(subject):
                self.on_line(text)
        self._reported = texts

    def _texts(self, found: Deliveries) -> dict[str, str]:
        """The failures of a delivery by their subject. One whose next attempt is not due yet stays what it was."""
        errors = [*found.problems, *(one.problem for one in found.targets if one.problem is not None)]
        texts = {text: text for text in (f"{one['what']}: {one['why']}" for one in errors)}
        for one in found.targets:
            if one.failed:
                texts[one.target] = f"events wait for {one.target}: {one.failed[0].reason}; {self.hint}"
            elif one.waiting and not one.sent and one.target in self._reported:
                texts[one.target] = self._reported[one.target]
        return texts


def _times(line: Line, begin: str, end: str) -> tuple[float, ...]:
    """The begins of the periods between two times. Raises UsageError."""
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from aifx.lines.schedule import next_start, period_start

    if line.every_s is None:
        raise UsageError(f"{line.path} has no period", "a backfill has a tick per period", 'every = "1d" below [line]')
    given = []
    for option, text in (("--from", begin), ("--to", end)):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(f"{option} {text!r} is not a time", "", f"{option} 2026-12-01T06:00") from None
        given.append((moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(line.timezone))).timestamp())
    first, last = given
    if last < first or last > time.time():
        why = f"--from {begin} is later than --to {end}" if last < first else f"--to {end} lies in the future"
        raise UsageError("there is no tick to make up for", why, "aifx line backfill --from 2026-12-01 --to 2026-12-02")
    at = period_start(first, line.every_s, line.timezone)
    times = [at] if at >= first else []
    while (at := next_start(at, line.every_s, line.timezone)) <= last:
        times.append(at)
        if len(times) > MOST_TICKS:
            why = f"more than {MOST_TICKS:,} periods lie between --from and --to"
            raise UsageError("too many ticks", why, "aifx line backfill with a later --from")
    return tuple(times)


MOST_TICKS = 10_000
