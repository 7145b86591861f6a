"""line.toml: the stations of a line and the targets of its events, as they are read and checked."""

from __future__ import annotations

import ipaddress
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

import tomli
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from aifx.core.digests import sha256_of_json
from aifx.core.errors import AifxError, ConfigError, did_you_mean
from aifx.core.files import read_input
from aifx.core.json_values import plain
from aifx.core.parsing import parse_toml
from aifx.lines.commands import identity_of
from aifx.lines.conditions import Condition, parse_condition
from aifx.lines.schedule import parse_duration
from aifx.lines.words import Binding, Word, split_command

LINE = "line.toml"
LAUNCHED = ("train", "eval")
"""Commands that a cluster runs: those that run as several processes."""
MOST_CIRCLES = 20
MOST_PER_DAY = 10_000
"""The highest `budget_per_day`."""
REFERENCE = "docs/line.md has the keys and an example"

Place = Literal["local", "slurm", "k8s"]
EventType = Literal[
    "gate.failed", "drift", "promoted", "rolled_back", "station.failed", "run.diverged", "node.unhealthy"
]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError('a duration is a text, such as "2h"')
    return parse_duration(value)


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_duration)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
StationName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,49}$")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _LineTable(_Table):
    every: Duration | None = None
    timezone: str = "UTC"
    jobs: int = Field(1, ge=1, le=1000)

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
            raise ValueError(f"no time zone {name!r}: such as Europe/Berlin") from None
        except KeyError:
            raise ValueError(f"no time zone {name!r}: such as Europe/Berlin") from None
        return name


class _StationTable(_Table):
    name: StationName
    run: Annotated[list[str], BeforeValidator(_list), Field(min_length=1, max_length=20)]
    after: list[str] = []
    when: str = Field("", max_length=1000)
    ask: Literal["", "approval"] = ""
    retries: int = Field(0, ge=0, le=100)
    time_limit: Duration | None = None
    on: Place = "local"
    environment: list[Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,99}|file:[^\x00-\x1f\x7f]+)$")]] = []
    shell: bool = False
    cooldown: Duration | None = None
    budget_per_day: int | None = Field(None, ge=1, le=MOST_PER_DAY)

    @field_validator("when")
    @classmethod
    def _is_condition(cls, when: str) -> str:
        _checked(parse_condition, when)
        return when

    @field_validator("run")
    @classmethod
    def _are_commands(cls, run: list[str]) -> list[str]:
        for text in run:
            _checked(_command, text)
        return run


class _NotifyTable(_Table):
    url_from: VariableName
    on: Annotated[list[EventType], Field(min_length=1)] = list(EVENT_TYPES)
    name: StationName | None = None
    secret_from: VariableName | None = None
    allow: list[str] = []

    @field_validator("allow")
    @classmethod
    def _are_networks(cls, allow: list[str]) -> list[str]:
        for network in allow:
            ipaddress.ip_network(network)  # a ValueError says which it is
        return allow


@dataclass(frozen=True)
class Target:
    """A receiver of events.

    Attributes:
        name: by default `url_from`.
        on: types of events that it gets.
        url_from: name of the environment variable with its URL, which is a secret.
        secret_from: name of the environment variable with the secret of its signatures.
        allow: private networks that its address may lie in, such as "10.0.0.0/8".
        line_number: of the file.
    """

    name: str
    on: tuple[EventType, ...]
    url_from: str
    secret_from: str
    allow: tuple[str, ...] = ()
    line_number: int = 0


@dataclass(frozen=True)
class Station:
    """A station of a line.

    Attributes:
        run: its commands as the file has them.
        words: of each command, without the word `aifx` in front.
        after: stations that it names as those before it.
        when: condition as the file has it; empty if it always holds.
        environment: names of variables, or "file:PATH" of files with variables.
        runs_per_day: attempts within 24 hours that `budget_per_day` allows.
        line_number: of the file; 0 if not known.
    """

    name: str
    run: tuple[str, ...]
    words: tuple[tuple[Word, ...], ...]
    condition: Condition
    after: tuple[str, ...] = ()
    when: str = ""
    ask: str = ""
    retries: int = 0
    time_limit_s: float | None = None
    on: Place = "local"
    environment: tuple[str, ...] = ()
    shell: bool = False
    cooldown_s: float | None = None
    runs_per_day: int | None = None
    line_number: int = 0

    @cached_property
    def bindings(self) -> tuple[Binding, ...]:
        """The names in braces of its commands, each once."""
        found = (binding for words in self.words for word in words for binding in word.bindings())
        return tuple(dict.fromkeys(found))

    @cached_property
    def written(self) -> list[list[str]]:
        """The words of its commands as the file has them, without `aifx` in front."""
        return [[word.written for word in words] for words in self.words]

    @cached_property
    def parents(self) -> tuple[str, ...]:
        """The stations before it: those of `after`, and those whose outputs its commands name."""
        named = (binding.station for binding in self.bindings if binding.station)
        return tuple(dict.fromkeys((*self.after, *named)))


@dataclass(frozen=True)
class Line:
    """A line as its file has it.

    Attributes:
        every_s: period of its ticks; None if each `aifx line run` is one.
        jobs: stations that run at the same time.
        stations: by name, parents first.
        digest: of the content of the file, without comments.
    """

    path: Path
    stations: Mapping[str, Station]
    digest: str
    every_s: float | None = None
    timezone: str = "UTC"
    jobs: int = 1

    def identity(self, words: Collection[str], document: Mapping[str, Any], code: int) -> Any:
        """The part of a command's outcome that the keys of later stations depend on, as JSON.

        It has the fields of the command's table and those that any station of the line names.
        """
        stations = self.stations.values()
        named = {binding.field for one in stations for binding in one.bindings if binding.station}
        return identity_of(tuple(words), document, code, sorted(named))


def read_line(path: Path) -> Line:
    """The line of a file. Raises ConfigError with all mistakes, each with its place."""
    return _open(path).read()


def read_targets(path: Path) -> tuple[Target, ...]:
    """The targets of events in a file, whatever its stations are. Raises ConfigError as `read_line`."""
    return _open(path).read_targets()


def inspect_line(path: Path) -> tuple[Line, tuple[Target, ...], list[tuple[int, str]]]:
    """The stations and targets of a file that can be read, and its mistakes with their rows, in the file's order.

    The stations are in the order of the file if there are mistakes. Raises ConfigError for a file that is no TOML.
    """
    reader = _open(path)
    line, targets = reader.inspect()
    return line, targets, sorted(reader.mistakes)


def _open(path: Path) -> _Reader:
    try:
        text = read_input(path).decode("utf-8-sig")
        document = parse_toml(text)
    except OSError as e:
        what = f"{path} cannot be read"
        raise ConfigError(what, e.strerror or str(e), f"write it, or: --file FILE; {REFERENCE}") from None
    except tomli.TOMLDecodeError as e:
        raise ConfigError(f"{path}:{e.lineno}:{e.colno}: not TOML", str(e), REFERENCE) from None
    except ValueError as e:
        raise ConfigError(f"{path}: no line", str(e).splitlines()[0], REFERENCE) from None
    return _Reader(path, text, document)


class _Reader:
    """Collects the mistakes of a file, so that all are reported at once."""

    def __init__(self, path: Path, text: str, document: Mapping[str, Any]) -> None:
        self.path, self.document = path, document
        self.rows = text.splitlines()
        self.mistakes: list[tuple[int, str]] = []

    def read(self) -> Line:
        line, _ = self.inspect()
        self.fail()
        return line

    def inspect(self) -> tuple[Line, tuple[Target, ...]]:
        """The line and its targets, as far as they can be read. Notes each mistake."""
        for key in self.document.keys() - {"line", "station", "notify"}:
            self.note(self.row_of(key), f"no table {key!r}: {did_you_mean(key, ('line', 'station', 'notify'))}")
        table = self.parse(_LineTable, self.document.get("line", {}), "[line]", self.row_of("line"), len(self.rows))
        tables = self.document.get("station", [])
        if not isinstance(tables, list) or not tables:
            self.note(1, "no station: a line has a table [[station]] for each")
            tables = []
        stations: dict[str, Station] = {}
        for number, one in enumerate(tables):
            if (station := self.station(number, one)) is None:
                continue
            if station.name in stations:
                first = stations[station.name].line_number
                self.note(station.line_number, f"two stations {station.name!r}: the first is in line {first}")
            stations.setdefault(station.name, station)
        named = [one.get("name") for one in tables if isinstance(one, dict)]
        known = [name for name in named if isinstance(name, str)]
        for station in stations.values():
            self.check_names(station, known)
        ordered, targets = self.ordered(stations), self.targets()
        if not isinstance(table, _LineTable):  # it has a mistake, which is noted
            table = _LineTable.model_validate({})
        digest = sha256_of_json({key: plain(self.document.get(key)) for key in ("line", "station")})
        return Line(self.path, ordered, digest, table.every, table.timezone, table.jobs), targets

    def read_targets(self) -> tuple[Target, ...]:
        targets = self.targets()
        self.fail()
        return targets

    def fail(self) -> None:
        """Raise ConfigError if there are mistakes."""
        if not self.mistakes:
            return
        places = [f"{self.path}:{row}: {text}" for row, text in sorted(self.mistakes)]
        if len(places) == 1:
            raise ConfigError(places[0], "", REFERENCE)
        raise ConfigError(f"{self.path} has {len(places)} mistakes", "\n".join(places), REFERENCE)

    def note(self, row: int, text: str) -> None:
        self.mistakes.append((row, text))

    def row_of(self, key: str, begin: int = 1, end: int | None = None) -> int:
        """The row in which a key or the table of this name stands, within a range; otherwise the first of the range."""
        pattern = re.compile(rf"\s*(\[+\s*)?\"?{re.escape(key)}\"?\s*[=\].]")
        rows = enumerate(self.rows[begin - 1 : end], begin)
        return next((number for number, row in rows if pattern.match(row)), begin)

    def rows_of(self, table: str, number: int) -> tuple[int, int]:
        """The first and the last row of the table with a number among those of its name, such as "station"."""
        begins = [n for n, row in enumerate(self.rows, 1) if re.match(rf"\s*\[\[\s*{table}\s*\]\]", row)]
        if number >= len(begins):
            return 1, len(self.rows)
        nexts = (n for n, row in enumerate(self.rows[begins[number] :], begins[number]) if re.match(r"\s*\[", row))
        return begins[number], next(nexts, len(self.rows))

    def targets(self) -> tuple[Target, ...]:
        tables = self.document.get("notify", [])
        if not isinstance(tables, list):
            self.note(self.row_of("notify"), "[notify] is one of several: write [[notify]]")
            return ()
        targets: dict[str, Target] = {}
        for number, one in enumerate(tables):
            begin, end = self.rows_of("notify", number)
            table = self.parse(_NotifyTable, one, f"notify {number + 1}", begin, end)
            if table is None:
                continue
            assert isinstance(table, _NotifyTable)
            name = table.name or table.url_from
            if name in targets:
                first = targets[name].line_number
                self.note(begin, f"two targets {name!r}: the first is in line {first}; give each a name = ...")
            secret = table.secret_from or f"{table.url_from}_SECRET"
            targets[name] = Target(name, tuple(table.on), table.url_from, secret, tuple(table.allow), begin)
        return tuple(targets.values())

    def station(self, number: int, given: Any) -> Station | None:
        begin, end = self.rows_of("station", number)
        name = given.get("name") if isinstance(given, dict) else None
        where = f"station {name!r}" if isinstance(name, str) else f"station {number + 1}"
        table = self.parse(_StationTable, given, where, begin, end)
        if table is None:
            return None
        assert isinstance(table, _StationTable)
        if table.on != "local" and (why := _unlaunchable(table)):
            self.note(self.row_of("on", begin, end), f"{where}: on = {table.on!r} runs one command of aifx: {why}")
        return Station(
            name=table.name, run=tuple(table.run), words=tuple(_command(text, shell=table.shell) for text in table.run),
            condition=parse_condition(table.when), after=tuple(table.after),
            when=table.when, ask=table.ask, retries=table.retries, time_limit_s=table.time_limit, on=table.on,
            environment=tuple(table.environment), shell=table.shell, cooldown_s=table.cooldown,
            runs_per_day=table.budget_per_day, line_number=begin,
        )  # fmt: skip

    def parse(self, kind: type[_Table], given: Any, where: str, begin: int, end: int) -> _Table | None:
        try:
            return kind.model_validate(given)
        except ValidationError as e:
            for error in e.errors():
                key = str(error["loc"][0]) if error["loc"] else ""
                why = error["msg"].removeprefix("Value error, ")
                if error["type"] == "extra_forbidden":
                    why = f"no such key: {did_you_mean(key, kind.model_fields)}"
                self.note(self.row_of(key, begin, end) if key else begin, f"{where}: {key}: {why}")
        return None

    def check_names(self, station: Station, known: Collection[str]) -> None:
        """Note each station that another one names and the file does not have."""
        subjects = [term.subject for term in station.condition.terms() if term.kind in ("verdict", "failed")]
        for key, names in (("after", station.after), ("run", station.parents), ("when", subjects)):
            for name in dict.fromkeys(names):
                if name not in known and not (key == "run" and name in station.after):
                    row = self.row_of(key, station.line_number)
                    self.note(row, f"station {station.name!r}: {key}: no station {name!r}: {did_you_mean(name, known)}")

    def ordered(self, stations: Mapping[str, Station]) -> Mapping[str, Station]:
        """The stations, parents first, otherwise in the order of the file."""
        sorter = TopologicalSorter({name: stations[name].parents for name in stations})
        try:
            sorter.prepare()
        except CycleError:
            for circle in islice(_circles({name: one.parents for name, one in stations.items()}), MOST_CIRCLES):
                self.note(stations[circle[0]].line_number, f"the stations wait for each other: {' -> '.join(circle)}")
            return stations
        made: dict[str, Station] = {}
        place = {name: number for number, name in enumerate(stations)}
        ready: list[str] = []
        while sorter.is_active():
            ready += sorter.get_ready()
            ready.sort(key=lambda name: place.get(name, 0))
            name = ready.pop(0)
            if name in stations:
                made[name] = stations[name]
            sorter.done(name)
        return made


def _circles(parents: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Circles in which each station waits for the next one: short ones that together have each wait of any circle."""
    found = set[tuple[str, str]]()
    for name in parents:
        for parent in parents[name]:
            if (name, parent) not in found and (way := _shortest_way(parents, parent, name)):
                circle = [name, *way]
                found.update(pairwise(circle))
                yield circle


def _shortest_way(parents: Mapping[str, Sequence[str]], begin: str, end: str) -> list[str]:
    """The stations on the shortest way from one to another over parents, both included; empty if there is none."""
    before, queue = {begin: begin}, deque([begin])
    while queue and end not in before:
        name = queue.popleft()
        for parent in parents.get(name, ()):
            if parent not in before:
                before[parent] = name
                queue.append(parent)
    if end not in before:
        return []
    way = [end]
    while way[-1] != begin:
        way.append(before[way[-1]])
    return way[::-1]


def _command(text: str, *, shell: bool = False) -> tuple[Word, ...]:
    words = split_command(text)
    if shell or words[0] != Word(("aifx",)):
        return words
    if len(words) == 1:
        raise ConfigError("run = 'aifx' is no command", "it has no words after aifx", REFERENCE)
    return words[1:]


def _unlaunchable(table: _StationTable) -> str:
    """Why a cluster cannot run a station; empty if it can."""
    if table.shell:
        return "shell = true is another program"
    if len(table.run) > 1:
        return f"run has {len(table.run)}; give each a station of its own"
    first = _command(table.run[0])[0].written
    return "" if first in LAUNCHED else f"run = 'aifx {' or '.join(LAUNCHED)} ...', and {first!r} is neither"


def _checked(parse: Callable[[str], object], text: str) -> None:
    """Let pydantic collect what a parser finds wrong."""
    try:
        parse(text)
    except AifxError as e:
        raise ValueError(f"{e.what}: {e.why}") from e
