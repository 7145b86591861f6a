"""The runs, ledgers of models, lines and drills of a project, in a period. No code of the project runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aifx.accounting.served import Served, read_served
from aifx.config.places import with_registry
from aifx.config.sections import CostsSection
from aifx.core.artifact import MANIFEST, short_reference
from aifx.core.errors import AifxError
from aifx.core.files import open_file, read_file
from aifx.core.json_files import parse_line, read_jsonl
from aifx.core.json_values import number
from aifx.core.parsing import parse_toml
from aifx.core.project import Project, RunDirectory
from aifx.drills.record import DRILLS
from aifx.lines.events import DAMAGE, Event, entry_events, read_events
from aifx.lines.journal import Journal
from aifx.registry.roots import open_root
from aifx.registry.state import ModelState
from aifx.runs.bill import read_costs
from aifx.runs.goodput import LONGEST_S, Goodput, read_goodput_between
from aifx.runs.lock import is_held
from aifx.runs.manage import read_tags
from aifx.runs.provenance import read_provenance
from aifx.runs.status import read_settings

TEXT_TASKS = ("language", "chat", "preference")
"""Values of `task.kind` whose models write text."""


@dataclass(frozen=True)
class Period:
    """From `begin` up to `end`, as Unix times. `begin` is None for all that is on disk."""

    begin: float | None
    end: float

    def __contains__(self, time: float) -> bool:
        return (self.begin is None or self.begin <= time) and time < self.end


@dataclass(frozen=True)
class RunUse:
    """What a run used in a period.

    Attributes:
        platform: of its devices, such as "cpu" or "gpu"; None if it is not known.
        num_devices: of all its processes; None if it is not known.
        writes_text: whether its model serves tokens, and not rows.
        served: by its servers; None without records of them.
    """

    name: str
    platform: str | None
    num_devices: int | None
    found: Goodput
    costs: CostsSection
    writes_text: bool
    served: Served | None
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Delivery:
    """The first time that an alias meant a version of a model.

    Attributes:
        data: versions of data sets that it was trained on.
        rows_at: Unix time at which the newest of these was asked for, or was made; None if it is not known.
    """

    model: str
    version: str
    time: float
    data: tuple[str, ...]
    rows_at: float | None


@dataclass
class ProjectUse:
    """What a project has on disk.

    Attributes:
        registry: URL of its models; None if it cannot be read.
        events: promotions, refusals and drift, by id: projects that share a registry have the same ones.
        in_service: the runs whose models were ever promoted.
        pushed: names of the models that a run was pushed as, by run.
        teams: values of the tag "team" of a model's versions, by model.
        tags: of each run, also of runs outside of the period.
        data_s: seconds of the line's stations that made data sets.
        drilled_at: Unix time of the end of the last drill.
        problems: what could not be read.
    """

    root: Path
    registry: str | None = None
    runs: list[RunUse] = field(default_factory=list)
    events: dict[str, Event] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    in_service: set[str] = field(default_factory=set)
    pushed: dict[str, set[str]] = field(default_factory=dict)
    teams: dict[str, set[str]] = field(default_factory=dict)
    tags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    data_s: float = 0.0
    drilled_at: float | None = None
    problems: list[str] = field(default_factory=list)

    def count(self, type: str, source: str = "") -> list[str]:
        """The ids of its events of a type."""
        return [id for id, one in self.events.items() if one.type == type and one.source.startswith(source)]


def read_project(project: Project, period: Period) -> ProjectUse:
    """Read a project. What cannot be read is among the problems."""
    use = ProjectUse(project.root)
    for run in project.runs():
        try:
            use.tags[run.name] = read_tags(run)
            if (one := read_run(run, project, period)) is not None:
                use.runs.append(one)
        except (AifxError, OSError) as error:
            use.problems.append(f"{run.path}: {error}")
    lines = read_events(project, None, {}, is_wanted=lambda event: event.time in period)
    use.problems += [error.what for error in lines.problems]
    use.events |= {one.id: one for one in lines.events}
    asked_at = _read_journal(project, period, use)
    try:
        drills = read_jsonl(project.runs_path / DRILLS)
    except (AifxError, OSError) as error:
        use.problems.append(f"{project.runs_path / DRILLS}: {error}")
        drills = []
    ends = [time for one in drills if (time := number(one.get("time"))) is not None]
    use.drilled_at = max([*ends, *([] if use.drilled_at is None else [use.drilled_at])], default=None)
    _read_models(project, period, use, asked_at)
    return use


def read_run(run: RunDirectory, project: Project, period: Period) -> RunUse | None:
    """What a run used; None if nothing happened in the period."""
    if period.begin is not None and _changed_at(run) < period.begin:
        return None
    found = read_goodput_between(read_jsonl(run.events), period.begin, period.end, alive=is_held(run))
    served = read_served(run.records, period.__contains__)
    if found.running_s <= 0 and not (served and served.answers):
        return None
    hardware = read_provenance(run).get("hardware")
    hardware = hardware if isinstance(hardware, Mapping) else {}
    platform, num_devices = hardware.get("platform"), hardware.get("num_devices")
    return RunUse(
        run.name,
        platform if isinstance(platform, str) else None,
        num_devices if isinstance(num_devices, int) and num_devices > 0 else None,
        found,
        read_costs(run, project),
        read_settings(run).get("task.kind") in TEXT_TASKS,
        served,
        read_tags(run),
    )


def _changed_at(run: RunDirectory) -> float:
    """The Unix time at which its events or records were written last; 0 without any."""
    times = [0.0]
    for path in (run.events, *run.records.glob("*/*.chain")):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _read_journal(project: Project, period: Period, use: ProjectUse) -> dict[str, float]:
    """The time at which a station began that made a version of a data set, by reference; notes what else it says."""
    asked_at: dict[str, float] = {}
    began: dict[str, float] = {}
    try:
        records = Journal(project.root / "line").records()
    except (AifxError, OSError) as error:
        use.problems.append(str(error))
        return {}
    for record in records:
        if record.kind == "started":
            began.setdefault(record.attempt, record.time)
        elif record.kind == "ended":
            outputs = record.facts.get("outputs")
            reference = outputs.get("reference") if isinstance(outputs, Mapping) else None
            if isinstance(reference, str):
                asked_at.setdefault(short_reference(reference), began.get(record.attempt, record.time))
            command = str(record.facts.get("command") or "")
            if command.startswith("drill") and record.facts.get("outcome") != "failed":
                use.drilled_at = record.time
            if command.startswith("data") and record.time in period:
                use.data_s += max(number(record.facts.get("duration_s")) or 0.0, 0.0)
    return asked_at


def _read_models(project: Project, period: Period, use: ProjectUse, asked_at: Mapping[str, float]) -> None:
    placed = with_registry(project)
    if placed is None:
        use.problems.append(f"[registry] in {project.config_path} cannot be read without the whole configuration")
        return
    try:
        root = open_root(None, placed)
        names = list(root.names())
    except (AifxError, OSError, RuntimeError) as error:  # the last as in _datasets
        use.problems.append(str(error))
        return
    use.registry = root.store.url
    for name in names:
        try:
            state = root.state(name)
            for version in state.versions.values():
                use.pushed.setdefault(str(version.pushed.facts.get("run")), set()).add(state.name)
            use.teams[state.name] = {team for tags in state.tags.values() if (team := tags.get("team"))}
            events = [event for entry in state.entries for event in entry_events(state, entry)]
            use.events |= {one.id: one for one in events if one.time in period}
            delivered = _deliveries(project, state, events, asked_at, use.in_service)
            use.deliveries += [one for one in delivered if one.time in period]
        except (*DAMAGE, AifxError, OSError) as error:
            use.problems.append(f"the ledger of {name} cannot be read: {error}")


def _deliveries(
    project: Project,
    state: ModelState,
    events: Sequence[Event],
    asked_at: Mapping[str, float],
    pushed_from: set[str],
) -> Iterator[Delivery]:
    served = set[str]()
    for event in events:
        digest = str(event.data.get("digest"))
        if event.type != "promoted" or digest in served or digest not in state.versions:
            continue
        served.add(digest)
        pushed_from.add(str(state.versions[digest].pushed.facts.get("run")))
        data = state.versions[digest].data
        times = [_made_at(project, short_reference(one), asked_at) for one in data]
        known = [time for time in times if time is not None]
        rows_at = max(known) if known and len(known) == len(times) else None
        yield Delivery(state.name, state.label(digest), event.time, data, rows_at)


def _made_at(project: Project, reference: str, asked_at: Mapping[str, float]) -> float | None:
    """When the line began to make a version, otherwise when its manifest was written; None without either."""
    if (time := asked_at.get(reference)) is not None:
        return time
    name, _, digits = reference.partition("@")
    root = _datasets(project)
    try:
        return (root / name / digits / MANIFEST).stat().st_mtime if root is not None else None
    except OSError:
        return None


def _datasets(project: Project) -> Path | None:
    """The folder of the project's data sets; None if it is a URL or cannot be read."""
    try:
        root: Any = parse_toml(read_file(project.config_path).decode()).get("datasets", {}).get("root", "datasets")
        return project.root / Path(root).expanduser() if isinstance(root, str) and "://" not in root else None
    except (OSError, ValueError, AttributeError, RuntimeError):  # pathlib raises the last for ~ of no user
        return None


def months(projects: Sequence[Project], period: Period) -> list[tuple[str, Period]]:
    """The calendar months in UTC that a period touches, such as "2026-12"; from the first run's if it has no begin."""
    begin = period.begin
    if begin is None:
        firsts = (_first_time(run) for project in projects for run in project.runs())
        begin = min((time for time in firsts if time is not None), default=period.end)
    at, found = datetime.fromtimestamp(begin, UTC), list[tuple[str, Period]]()
    at = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    while at.timestamp() < period.end:
        following = at.replace(year=at.year + at.month // 12, month=at.month % 12 + 1)
        part = Period(max(at.timestamp(), begin), min(following.timestamp(), period.end))
        found.append((f"{at:%Y-%m}", part))
        at = following
    return found


def _first_time(run: RunDirectory) -> float | None:
    try:
        with open(open_file(run.events), "rb") as file:
            time = number((parse_line(file.readline()) or {}).get("time"))
    except (AifxError, OSError):
        return None
    return time if time is not None and 0 < time < LONGEST_S else None
