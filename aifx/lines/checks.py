"""What is wrong with a line, as far as it can be known without running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from aifx.core.errors import AifxError, ExitCode, UsageError
from aifx.core.project import Project
from aifx.core.results import Result
from aifx.lines.bindings import locate, read_settings, resolve
from aifx.lines.commands import find_command
from aifx.lines.file import REFERENCE, Line, Station, Target, inspect_line
from aifx.lines.names import configured_names, is_made, subject_name
from aifx.lines.running import environment_of
from aifx.lines.words import Binding

Words = Sequence[str]


@dataclass(frozen=True)
class Finding:
    """A mistake of a line, or something that it needs and that is not there.

    Attributes:
        row: row of the file.
        station: empty for the file itself and the targets of events.
        transient: the same check may find nothing later: a store could not be reached.
    """

    row: int
    station: str
    what: str
    why: str
    hint: str
    transient: bool = False

    def describe(self, path: str) -> str:
        """Return its place and its words, as one line."""
        where = f"station {self.station!r}: " if self.station else ""
        return f"{path}:{self.row}: {where}{self.what}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True)
class CheckedLine(Result):
    """A line that was checked.

    Attributes:
        path: its file.
        stations: their names, parents first.
    """

    path: str
    stations: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.findings else ExitCode.OK


@dataclass(frozen=True)
class Knowledge:
    """What a check knows besides the line and its project.

    Attributes:
        environ: in which the line would run.
        check_command: raises UsageError for words that are no command of aifx.
        has_field: whether the document of a command has a value, by the keys that lead to it.
    """

    environ: Mapping[str, str]
    check_command: Callable[[Words], None]
    has_field: Callable[[str, Words], bool]


def check_line(path: Path, project: Project, known: Knowledge) -> CheckedLine:
    """Check a line. Runs nothing of it, and imports nothing of the project.

    Data sets and models are looked up if the file itself has no mistakes. Raises ConfigError if the file or aifx.toml
    cannot be read.
    """
    line, targets, mistakes = inspect_line(path)
    findings = [Finding(row, "", text, "", REFERENCE) for row, text in mistakes]
    for station in line.stations.values():
        findings += _of_station(station, project, known)
    findings += _of_targets(targets, known.environ)
    if not mistakes:
        findings += _Names(line, project, known).findings()
    findings.sort(key=lambda one: one.row)
    return CheckedLine(str(path), tuple(line.stations), tuple(findings))


def _of_station(station: Station, project: Project, known: Knowledge) -> Iterator[Finding]:
    def found(error: AifxError) -> Finding:
        return Finding(station.line_number, station.name, error.what, error.why, error.hint)

    for text, words in () if station.shell else zip(station.run, station.written, strict=True):
        try:
            known.check_command(words)
        except AifxError as e:
            hint = e.hint if text.split()[0] == "aifx" else "run = 'aifx ...', or shell = true for another program"
            yield found(UsageError(e.what, e.why, hint))
    for name in station.environment:
        try:
            environment_of([name], project.root, known.environ, is_program=station.shell)
        except AifxError as e:
            yield found(e)
    given = {"cooldown": station.cooldown_s, "budget_per_day": station.runs_per_day}
    missing = [key for key, value in given.items() if value is None]
    if missing and not station.shell and any(find_command(words).trains for words in station.written):
        why = "it trains, and a lasting drift would start it again and again"
        hint = 'such as cooldown = "6h" and budget_per_day = 2'
        yield found(UsageError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing", why, hint))


def _of_targets(targets: Sequence[Target], environ: Mapping[str, str]) -> Iterator[Finding]:
    for target in targets:
        for name in (target.url_from, target.secret_from):
            if not environ.get(name):
                what, why = f"the environment variable {name} is not set", f"target {target.name!r} of events needs it"
                yield Finding(target.line_number, "", what, why, f"export {name}=...  where the line runs")


class _Names:
    """The names in braces and in conditions of a line whose file has no mistakes."""

    def __init__(self, line: Line, project: Project, known: Knowledge) -> None:
        self.line, self.project, self.known = line, project, known
        self.stations = line.stations.values()
        self.faults: dict[str, AifxError | None] = {}

    def findings(self) -> Iterator[Finding]:
        settings = read_settings(self.project)
        for station in self.stations:
            names = [one.name for one in station.bindings if one.name.startswith(("data.", "models."))]
            names += [subject_name(one.subject) for one in station.condition.terms() if one.kind == "changed"]
            names += configured_names(self.line, station, self.project, settings)
            errors = [self.fault_of(name) for name in dict.fromkeys(names)]
            errors += [self.fault_of_output(one) for one in station.bindings if one.station]
            for error in errors:
                if error is not None:
                    row, transient = station.line_number, error.transient
                    yield Finding(row, station.name, error.what, error.why, error.hint, transient)

    def fault_of(self, name: str) -> AifxError | None:
        """Why a name of a data set or a model means nothing, neither now nor after a station that makes it."""
        if name not in self.faults:
            self.faults[name] = None if is_made(name, self.line, self.project) else self.lookup(name)
        return self.faults[name]

    def lookup(self, name: str) -> AifxError | None:
        try:
            resolve(name, self.located)
        except UsageError as e:
            return UsageError(f"{name} means nothing", f"{e.what}, and no station makes it", e.hint)
        except AifxError as e:
            return e
        return None

    def fault_of_output(self, binding: Binding) -> AifxError | None:
        station = self.line.stations[binding.station]
        if station.shell:
            return None  # the document of a program is not known before it ran
        command = find_command(station.written[-1])
        if command.has_document and self.known.has_field(command.name, binding.field):
            return None
        kind = "no such value" if command.has_document else "no document"
        hint = f"aifx {command.name} --help"
        return UsageError(f"{{{binding.name}}} means nothing", f"aifx {command.name} prints {kind}", hint)

    @cached_property
    def located(self) -> Project:
        return locate(self.project)
