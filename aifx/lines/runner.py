"""One tick of a line: stations are started, adopted, repeated and ended, each act after its record.

A tick that was killed is continued by the next call with what its names meant. So a station that reads from outside
does not run twice, and an attempt that goes on is waited for and not started again.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aifx.cluster.jobs import POLL_S
from aifx.core.errors import AifxError, ExitCode, UsageError
from aifx.core.files import FolderBusy, holding, make_folders
from aifx.core.json_files import cannot_write, write_json
from aifx.core.parsing import parse_json
from aifx.core.processes import KILLED, Apart, signal_text
from aifx.core.project import Project
from aifx.core.redaction import REMOVED, redact, redact_arguments, redact_values
from aifx.core.version import __version__
from aifx.lines.bindings import TICK, fix_bindings
from aifx.lines.checkpoint import Replay
from aifx.lines.commands import find_command
from aifx.lines.file import Line, Place, Station
from aifx.lines.jobs import AT_ONCE, Job, JobEnd, Questions, submission
from aifx.lines.journal import Journal
from aifx.lines.meaning import LineMeaning
from aifx.lines.running import AIFX, GRACE_S, Exit, Try, environment_of
from aifx.lines.state import LineState, Open
from aifx.lines.tick import ALLOW_SHELL, Decision, Meaning, Rules, decide

ATTEMPTS = "attempts"
COMMANDS = "commands.json"
MAX_BUSY = 5
"""Times that an attempt is repeated that was preempted or killed, or met a full disk."""
MAX_PAUSE_S = 3600.0
WATCH_S = 15.0
"""Between two questions to a scheduler after a tick."""
JOB_GRACE_S = 600.0
"""Between the end of a job's time limit, when its run is asked to save, and its end without that."""
OUTPUTS_BYTES = 32 << 10
"""Size of a document that the journal keeps whole. Of a larger one it keeps the values that are no lists."""
FIRST_LOOK_S, LAST_LOOK_S = 0.01, 0.5
"""Between two looks at attempts that run, at first and after a while in which nothing happened."""


@dataclass(frozen=True)
class Settings:
    """How a tick runs.

    Attributes:
        environ: of the line.
        now: Unix time that the tick is for.
        is_past: the tick is made up for; pauses and budgets count from `now`.
        pause_s: first pause before an attempt is repeated; each further one is twice as long.
        should_stop: asked between two acts; attempts that run are left to the next tick.
        report: called with a line for people.
        while_waiting: called between two looks.
    """

    environ: Mapping[str, str]
    now: float
    selected: frozenset[str] | None = None
    allows_shell: bool = False
    is_past: bool = False
    pause_s: float = 10.0
    should_stop: Callable[[], bool] = lambda: False
    report: Callable[[str], None] = lambda text: None
    while_waiting: Callable[[], None] = lambda: None


def folder_of(line: Line) -> Path:
    """The folder beside a line's file that remembers what it did: `line/` of `line.toml`."""
    return line.path.with_suffix("")


@contextmanager
def held(line: Line) -> Iterator[None]:
    """Hold a line for a tick. Raises FolderBusy, which exits 75 and names the other process.

    An OSError of the tick, such as that of a full disk, is raised as AifxError.
    """
    folder = folder_of(line)
    try:
        make_folders(folder, below=folder.parent)
        with holding(folder, f"the line {line.path}", "runs a tick"):
            yield
    except FolderBusy as e:
        raise FolderBusy(e.what, e.why, e.hint, exit_code=ExitCode.PREEMPTED) from None
    except OSError as e:
        raise cannot_write(Path(e.filename) if isinstance(e.filename, str) else folder, e) from e


@dataclass
class TickRun:
    """A tick of a line, which its caller holds."""

    line: Line
    project: Project
    settings: Settings
    journal: Journal = field(init=False)
    _replay: Replay = field(init=False)
    _meaning: Meaning | None = None
    _bindings: Mapping[str, str] = field(default_factory=dict)
    _is_written: bool = False
    _decided_at: int = 0
    _children: dict[str, Apart] = field(default_factory=dict)
    _secrets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _stopped_at: dict[str, float] = field(default_factory=dict)
    _elsewhere: dict[str, Job] = field(default_factory=dict)
    """Jobs that were submitted and are not over, by station."""
    _questions: Questions = field(default_factory=Questions)
    _unstartable: dict[str, AifxError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._replay = Replay(folder_of(self.line))
        self.journal = self._replay.journal

    @property
    def state(self) -> LineState:
        """What the journal says, as far as the tick has read it."""
        return self._replay.state

    @property
    def tick(self) -> str:
        """The time that the tick is for, once it has begun or is planned."""
        return self._bindings.get(TICK, "")

    @property
    def has_jobs(self) -> bool:
        """Whether a cluster runs an attempt, or is given one."""
        return any(own.open is not None and own.open.on != "local" for own in self.state.stations.values())

    def close(self) -> None:
        """End the questions to schedulers that are open."""
        self._questions.close()

    def run(self) -> dict[str, Decision]:
        """Run the tick to its end, and return the last decision on each station.

        Raises AifxError if the journal cannot be read or written, or names cannot be fixed; attempts that run go on.
        """
        self._begin()
        made, look_s = dict[str, Decision](), FIRST_LOOK_S
        while True:
            is_new, self._decided_at = self._replay.update(), self.journal.place.end
            if is_new or not made:
                look_s, made = FIRST_LOOK_S, self._decide()
                if self._report(made):
                    continue
            if self._look_after_attempts():
                continue
            open_now = [name for name, own in self.state.stations.items() if own.open is not None]
            running = [name for name in open_now if name not in self._unstartable and name not in self._elsewhere]
            ready = self._within_limits([one for one in made.values() if one.state == "ready"], running)
            # A tick of the past ends with its jobs: the next one would find the stations running, and do nothing.
            is_waiting = bool(running or (self._elsewhere and self.settings.is_past))
            # Otherwise each job is asked about once: one may always be due again before another one is answered.
            is_asking = self._questions.ask(self._elsewhere.values(), POLL_S if is_waiting else math.inf)
            if self.settings.should_stop():
                return made
            for decision in ready:
                self._start(decision)
            if not ready and not is_waiting and not is_asking:
                break
            if not ready:
                self.settings.while_waiting()
                time.sleep(look_s)
                look_s = min(look_s * 1.3, LAST_LOOK_S)
        made |= {name: _failed(name, error) for name, error in self._unstartable.items() if name in made}
        made |= {name: replace(made[name], why=job.text) for name, job in self._elsewhere.items() if name in made}
        if self._is_written:
            self.journal.append("tick", is_over=True, id=self._bindings[TICK])
            if self.journal.place.begin == self._decided_at:
                self._decided_at = self.journal.place.end
        self._replay.save()
        return made

    def _within_limits(self, ready: Sequence[Decision], running: Sequence[str]) -> list[Decision]:
        """The stations that may start beside those that run. A submission takes no slot of a station that runs here."""
        left = {True: self.line.jobs, False: AT_ONCE}
        for name in running:
            opened = self.state.of(name).open
            left[opened is None or opened.on == "local"] -= 1
        by_place = {
            here: [one for one in ready if (self.line.stations[one.station].on == "local") is here] for here in left
        }
        return [one for here, count in left.items() for one in by_place[here][: max(0, count)]]

    def has_ended_job(self) -> bool:
        """Whether a job is over that the tick has left. The schedulers are asked from time to time, by themselves."""
        for name, job in self._elsewhere.items():
            self._limit_job(name, job)
        self._questions.ask(self._elsewhere.values(), WATCH_S)
        return any(job.end is not None for job in self._elsewhere.values())

    def has_news(self) -> bool:
        """Whether another process wrote a record after the last decisions. Raises DamagedJournal, OSError."""
        self.journal.records()
        return self.journal.place.end != self._decided_at

    def plan(self) -> dict[str, Decision]:
        """Decide what the tick would start first, without doing it. Raises AifxError if names cannot be fixed."""
        self._fix()
        return self._decide()

    def _decide(self) -> dict[str, Decision]:
        assert self._meaning is not None
        now = self.settings.now if self.settings.is_past else time.time()
        rules = Rules(now, self.settings.selected, self.settings.allows_shell, self._environment, self.tick)
        return decide(self.line.stations, self.state, self._meaning, rules)

    def _begin(self) -> None:
        """Go on with a tick that was interrupted, if it is one of the same line."""
        tick = self.state.tick
        if tick is not None:
            self._remove_unrecorded()
        if tick is not None and tick.facts["line"] != self.line.digest:
            self.journal.append("tick", is_over=True, id=tick.facts["bindings"][TICK])
            self.state.tick = None
        self._fix()

    def _remove_unrecorded(self) -> None:
        """Remove folders of attempts that were killed before their record: nothing of them began."""
        recorded = {own.open.attempt for own in self.state.stations.values() if own.open is not None}
        for folder in (self.journal.folder / ATTEMPTS).glob("*/"):
            if folder.name not in recorded and not any(folder.glob("*/")):
                shutil.rmtree(folder, ignore_errors=True)

    def _fix(self) -> None:
        tick = self.state.tick
        self._is_written = tick is not None and tick.facts["line"] == self.line.digest
        if tick is not None and self._is_written:
            self._bindings = tick.facts["bindings"]
        else:
            self._bindings = fix_bindings(self.line, self.project, self.settings.now)
        self._meaning = LineMeaning(self.line, self.project, self._bindings, self.settings.now)

    def _write_tick(self) -> None:
        """Write down what names mean before the first act that rests on it. A tick without an act writes nothing."""
        if not self._is_written:
            self.journal.append("tick", bindings=self._bindings, line=self.line.digest, aifx=__version__)
            self._is_written = True

    def _report(self, made: Mapping[str, Decision]) -> bool:
        """Write down why stations do not go on, once as long as it stays the same. Returns whether it wrote."""
        has_written = False
        for name, one in made.items():
            own = self.state.of(name)
            is_new = one.key not in own.ends and (own.report is None or own.report.facts["report"] != one.report)
            if is_new and (one.asks or one.state == "failed" or (one.state == "skipped" and one.hint)):
                self._write_report(one)
                has_written = True
        return has_written

    def _write_report(self, one: Decision) -> None:
        self._write_tick()
        error = {"what": redact(one.what), "why": redact(one.why), "hint": redact(one.hint)}
        facts: dict[str, Any] = {"state": one.state, "asks": one.asks, "report": one.report, "error": error}
        self.journal.append("reported", one.station, one.key, **facts)
        text = f"{error['what']}: {error['why']}" if one.what else error["why"]
        self.settings.report(f"{one.station}: {one.state}: {text}")

    def _start(self, decision: Decision) -> None:
        """Record an attempt and begin it."""
        name, again = decision.station, self.state.of(decision.station).again.get(decision.key)
        fresh = f"{name[:40]}-{decision.key[:8]}-{secrets.token_hex(4)}"  # a request id has 63 characters at most
        attempt = again.attempt if again is not None else fresh
        number = again.tries + 1 if again is not None else 1
        station = self.line.stations[name]
        job = 1 if again is None else again.job
        self._write_tick()
        one = self._try(attempt, number)
        make_folders(one.path.parent, below=self.journal.folder.parent)
        write_json(one.path.parent / COMMANDS, {"commands": decision.commands})
        words = [redact_arguments(command) for command in decision.commands]
        self.journal.append("started", name, decision.key, attempt, number=number, words=words, on=station.on, job=job)
        self.settings.report(f"{name}: started ({decision.why}), attempt {attempt}")
        self._begin_try(station, one, station.on, job)

    def _try(self, attempt: str, number: int) -> Try:
        return Try(self.journal.folder / ATTEMPTS, attempt, number)

    def _environment(self, station: Station, attempt: str = "") -> dict[str, str]:
        """The environment of a station's commands. Raises ConfigError if a variable is missing."""
        environ, hidden = environment_of(
            station.environment, self.project.root, self.settings.environ, is_program=station.shell,
            AIFX_REQUEST=attempt, AIFX_LINE_STATION=station.name, AIFX_LINE_TICK=self._bindings.get(TICK, ""),
        )  # fmt: skip
        self._secrets[station.name] = hidden
        return environ

    def _begin_try(self, station: Station, one: Try, on: Place, job: int) -> None:
        """Begin a try, which submits a job if a cluster runs the station.

        One whose environment or permission is missing is reported, and begins in a tick in which it is there.
        """
        try:
            if station.shell and not self.settings.allows_shell:  # another call started it, or the journal says so
                raise UsageError(f"{station.name} has begun", "it runs a program that is not aifx", ALLOW_SHELL)
            environ = self._environment(station, one.attempt)
        except AifxError as e:
            self._unstartable[station.name] = e
            failed = _failed(station.name, e)
            report = self.state.of(station.name).report
            if report is None or report.facts["report"] != failed.report:
                self._write_report(failed)
            return
        commands = commands_of(one)
        if on == "local":
            commands = [_program(words, station, f"{one.attempt}-{number}") for number, words in enumerate(commands, 1)]
        else:
            words = _with_options(commands[0], one.attempt)
            commands = [[*AIFX, *submission(words, on, f"{one.attempt}-{job}")]]
        child = one.start(commands, environ, self.project.root)
        if child is not None:
            self._children[one.attempt] = child

    def _look_after_attempts(self) -> bool:
        """Look at each open attempt, and begin, stop, repeat or end it. Returns whether a record was written."""
        has_written = False
        for name, own in self.state.stations.items():
            if own.open is None or name in self._unstartable:
                continue
            station, opened = self.line.stations.get(name), own.open
            one = self._try(opened.attempt, opened.number)
            if (child := self._children.get(opened.attempt)) is not None:
                child.poll()
            found = one.look()
            if isinstance(found, Exit) and found.code == ExitCode.OK and opened.on != "local":
                has_written = self._look_after_job(name, station, opened, one) or has_written
            elif isinstance(found, Exit):
                self._settle(name, station, opened, one, found)
                has_written = True
            elif found:
                self._limit(station, one)
            elif station is None:
                error = {"what": f"{name} is not in the line any more", "why": "its attempt had not begun", "hint": ""}
                self.journal.append("ended", name, opened.key, opened.attempt, outcome="failed", error=error)
                has_written = True
            elif not opened.since <= time.time() < opened.not_before:  # a clock that ran back does not make it wait
                self._begin_try(station, one, opened.on, opened.job)
        return has_written

    def _look_after_job(self, name: str, station: Station | None, opened: Open, one: Try) -> bool:
        """Stop, repeat or end a job by what its scheduler says. Returns whether it has ended."""
        if name not in self._elsewhere:
            self._elsewhere[name] = Job(self.project, opened.on, opened.job_request)
        if (end := self._elsewhere[name].end) is None:
            self._limit_job(name, self._elsewhere[name])
            return False
        del self._elsewhere[name]
        self._settle_job(name, station, opened, one, end)
        return True

    def _limit_job(self, name: str, job: Job) -> None:
        """Stop a job whose time, the queue's included, exceeds the time limit of its station."""
        opened, station = self.state.of(name).open, self.line.stations.get(name)
        limit = None if station is None else station.time_limit_s
        if opened is None or limit is None or (over := time.time() - opened.since - limit) <= 0:
            return
        why = f"it took more than its time_limit of {limit:g} s, since it was submitted"
        self._try(opened.attempt, opened.number).stop(why)
        job.stop = "now" if over > JOB_GRACE_S else "saves"

    def _limit(self, station: Station | None, one: Try) -> None:
        """End a try that exceeds its time limit: SIGTERM first, SIGKILL after a grace."""
        limit, age = None if station is None else station.time_limit_s, one.age_s()
        if limit is None or age is None or age <= limit:
            return
        name = f"{one.attempt}/{one.number}"
        if name not in self._stopped_at:
            self._stopped_at[name] = time.monotonic()
            one.stop(f"it ran for more than its time_limit of {limit:g} s")
        elif time.monotonic() > self._stopped_at[name] + GRACE_S:
            one.stop("", at_once=True)

    def _settle(self, name: str, station: Station | None, opened: Open, one: Try, found: Exit) -> None:
        """Write down what a try came to: the end of the attempt, or that it is tried again."""
        document = _document(one.output(found.command))
        if found.code == ExitCode.UNABLE and "error" not in document:
            failure = _document(one.failure(found.command))
            is_own = station is None or not station.shell or _came_last(failure, one.errors(found.command))
            document |= failure if is_own and _code(failure) == found.code else {}
        error = _error(name, found, document, one) if found.code else {}
        self._write_end(name, station, opened, one, found, document, error)

    def _settle_job(self, name: str, station: Station | None, opened: Open, one: Try, end: JobEnd) -> None:
        """Write down what a job came to. A further try has a job of its own."""
        document = _document(end.answer)
        code = _code(document) if end.code is None else end.code
        found = Exit(1, code, one.stopped() or end.stopped)
        error = _job_error(name, end, found, document) if code or found.stopped else {}
        self._write_end(name, station, replace(opened, job=opened.job + 1), one, found, document, error, is_job=True)

    def _write_end(
        self,
        name: str,
        station: Station | None,
        opened: Open,
        one: Try,
        found: Exit,
        document: Mapping[str, Any],
        error: Mapping[str, str],
        *,
        is_job: bool = False,
    ) -> None:
        self._write_tick()
        words, hidden = commands_of(one)[found.command - 1], self._hidden(name, station)
        error = _without(error, hidden)
        if self._is_repeatable(station, opened, found, document):
            pause_s = min(self.settings.pause_s * 2.0**opened.failures, MAX_PAUSE_S)
            why = f"{error['what']}: {error['why']}"
            next_try = {"number": opened.number + 1, "not_before": time.time() + pause_s, "job": opened.job}
            self.journal.append("repeated", name, opened.key, opened.attempt, code=found.code, why=why, **next_try)
            self.settings.report(f"{name}: tried again in {pause_s:g} s: {why}")
            return
        is_shell = station is not None and station.shell
        # A program that crashes exits 1 as well, and so does a job's script: a verdict is one with a document.
        is_verdict = found.code == ExitCode.VERDICT and (document or not (is_shell or is_job))
        outcome = "done" if found.code == ExitCode.OK else "verdict" if is_verdict else "failed"
        facts: dict[str, Any] = {"outcome": outcome, "code": found.code, "tries": opened.number, "job": opened.job}
        facts["command"] = words[0] if is_shell else find_command(words).name
        facts["duration_s"] = round(max(0.0, time.time() - opened.began), 3)
        if outcome == "failed":
            facts["error"] = error
        else:
            facts["outputs"] = _without(_kept(document), hidden)
            facts["identity"] = _without(self.line.identity(words, document, found.code), hidden)
        self.journal.append("ended", name, opened.key, opened.attempt, **facts)
        self._children.pop(opened.attempt, None)
        self.settings.report(
            f"{name}: {outcome}" + (f": {error['what']}: {error['why']}" if outcome == "failed" else "")
        )

    def _is_repeatable(self, station: Station | None, opened: Open, found: Exit, document: Mapping[str, Any]) -> bool:
        if station is None or found.stopped:
            return False
        if found.was_lost or found.was_full or found.code in (ExitCode.PREEMPTED, KILLED):  # nothing was decided
            return opened.failures < MAX_BUSY
        error = document.get("error")
        is_transient = isinstance(error, Mapping) and error.get("transient") is True
        # A job without a document did not begin.
        may_pass = is_transient or (opened.on != "local" and not document)
        return may_pass and found.code == ExitCode.UNABLE and opened.failures < station.retries

    def _hidden(self, name: str, station: Station | None) -> tuple[str, ...]:
        """The secrets that a station's commands know, also if another process began them."""
        if name not in self._secrets and station is not None:
            try:
                self._environment(station)
            except AifxError:
                return ()
        return self._secrets.get(name, ())


def _failed(name: str, error: AifxError) -> Decision:
    return Decision(name, "failed", error.why, what=error.what, hint=error.hint)


def _program(words: Sequence[str], station: Station, request: str) -> list[str]:
    """The argv of a command."""
    return list(words) if station.shell else [*AIFX, *_with_options(words, request)]


def _with_options(words: Sequence[str], request: str) -> list[str]:
    """The words of a command that is asked for a document, and given the id of its effect if it keeps one."""
    command = find_command(words)
    end = words.index("--") if "--" in words else len(words)  # a command that has subcommands takes them first
    options = ["--json"] if command.has_document and "--json" not in words else []
    options += ["--request", request] if command.takes_request else []
    return [*words[:end], *options, *words[end:]]


def commands_of(one: Try) -> list[list[str]]:
    """The words of the commands of an attempt. Raises OSError, ValueError."""
    doc = parse_json((one.path.parent / COMMANDS).read_bytes())
    return [[str(word) for word in command] for command in doc["commands"]]


def _document(output: bytes) -> dict[str, Any]:
    """The JSON document of a command; of a program that prints other text, its last line if it is one."""
    for text in (output, *output.splitlines()[-1:]):
        try:
            doc = parse_json(text)
        except ValueError:
            continue
        if isinstance(doc, dict):
            return doc
    return {}


def _kept(document: Mapping[str, Any]) -> Any:
    doc = redact_values(document)
    if len(json.dumps(doc, default=str)) <= OUTPUTS_BYTES:
        return doc
    return {key: value for key, value in doc.items() if not isinstance(value, list | dict)}


def _error(name: str, found: Exit, document: Mapping[str, Any], one: Try) -> dict[str, str]:
    """What, why and hint of a try that did not exit 0: the command's own error, or the end of what it wrote."""
    given = document.get("error")
    given = given if isinstance(given, Mapping) else {}
    what = f"command {found.command} of {name} {_how(found)}"
    given = given or _written_error(one.errors(found.command).decode(errors="replace"))
    why = ": ".join(str(given[part]) for part in ("what", "why") if given.get(part))
    silent = "the disk was full" if found.was_full else "it wrote nothing"
    hint = given.get("hint") or f"aifx line logs {name}; then: aifx line retry {name}"
    return {"what": what, "why": redact(found.stopped or why or silent), "hint": redact(str(hint))}


def _came_last(failure: Mapping[str, Any], errors: bytes) -> bool:
    """Whether a program wrote nothing after the failure of an aifx in it: otherwise it handled that, and went on."""
    given = failure.get("error")
    parts = [str(given.get(part, "")).split() for part in ("hint", "why", "what")] if isinstance(given, Mapping) else []
    last = next((words for words in parts if words), [])
    return last != [] and errors.decode(errors="replace").split()[-len(last) :] == last


def _written_error(text: str) -> dict[str, str]:
    """The error in what a command wrote to stderr: that of aifx in its three parts, otherwise the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    at = next((number for number, line in enumerate(lines) if line.startswith("error: ")), None)
    if at is None or not lines[-1].startswith("hint: "):
        return {"why": lines[-1][:300]} if lines else {}
    what, hint = lines[at].removeprefix("error: "), lines[-1].removeprefix("hint: ")
    return {"what": what, "why": " ".join(lines[at + 1 : -1])[:300], "hint": hint}


def _code(document: Mapping[str, Any]) -> int:
    """The exit code of a command that failed, by its document: an error has it, and another one is a verdict."""
    error = document.get("error")
    if isinstance(error, Mapping):
        code = error.get("exit_code")
        return code if isinstance(code, int) and code else int(ExitCode.UNABLE)
    return int(ExitCode.VERDICT if document else ExitCode.UNABLE)


def _job_error(name: str, end: JobEnd, found: Exit, document: Mapping[str, Any]) -> dict[str, str]:
    """What, why and hint of a job that did not exit 0: its command's own error, or the end of its log."""
    given = document.get("error")
    given = given if isinstance(given, Mapping) else {}
    why = found.stopped or ": ".join(str(given[part]) for part in ("what", "why") if given.get(part))
    why = why or ": ".join(part for part in (end.why, end.last_line[:300]) if part)
    hint = given.get("hint") or f"{end.hint}; then: aifx line retry {name}"
    return {"what": f"the job of {name} {_how(found)}", "why": redact(why), "hint": redact(str(hint))}


def _how(found: Exit) -> str:
    if found.stopped:
        return "was stopped"
    if found.was_lost:
        return "was killed together with its shell"
    if found.code > 128:
        return f"was ended by {signal_text(found.code - 128)}"
    return f"exited {found.code}"


def _without(value: Any, hidden: Sequence[str]) -> Any:
    """A JSON value without the secrets of a station's environment."""
    if isinstance(value, str):
        for secret in hidden:
            value = value.replace(secret, REMOVED)
        return value
    if isinstance(value, Mapping):
        return {key: _without(item, hidden) for key, item in value.items()}
    return [_without(item, hidden) for item in value] if isinstance(value, list | tuple) else value
