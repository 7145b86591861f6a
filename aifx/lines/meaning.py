"""What the texts of a line mean in one tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aifx.core.project import Project
from aifx.data.versions.catalog import open_catalog
from aifx.lines.bindings import TICK, bind, locate, subject_name
from aifx.lines.commands import find_command
from aifx.lines.conditions import Term
from aifx.lines.file import Line, Station
from aifx.lines.keys import station_key
from aifx.lines.schedule import is_due, parse_duration

if TYPE_CHECKING:
    from aifx.lines.state import Ended, LineState, StationState


@dataclass(frozen=True)
class LineMeaning:
    """The meaning of a line's texts in a tick.

    Attributes:
        bindings: that the tick fixed (`fix_bindings`).
        now: Unix time that the tick is for.
    """

    line: Line
    project: Project
    bindings: Mapping[str, str]
    now: float

    def holds(self, station: Station, state: LineState) -> str:
        """Return why a station's condition does not hold; empty if it does.

        A station that ended in this tick is not judged again.
        """
        own = state.of(station.name)
        if own.seen.get(TICK) == self.bindings[TICK] or not station.when:
            return ""
        if station.condition.judge(lambda term: self._is_true(term, own, state)):
            return ""
        return f"not: {station.when}"

    def _is_true(self, term: Term, own: StationState, state: LineState) -> bool:
        match term.kind:
            case "changed":
                name = subject_name(term.subject)
                return name in self.bindings and self.bindings[name] != own.seen.get(name)
            case "every":
                return is_due(own.began, self.now, parse_duration(term.subject), self.line.timezone)
        last = state.of(term.subject).last
        return last is not None and last.outcome == term.kind

    def key(self, station: Station, identities: Mapping[str, Any]) -> str:
        """Return the digest of what a station works on."""
        return station_key(station, self.bindings, identities, self.project)

    def commands(self, station: Station, key: str, outputs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
        """Return the words of a station's commands. Raises UsageError for a name that means nothing."""
        return bind(station, self.bindings, outputs, key)

    def is_present(self, station: Station, end: Ended) -> bool:
        """Return whether the run or the version that a station made is still there."""
        command, outputs = find_command([word.text(lambda one: "x") for word in station.words[-1]]), end.outputs
        if station.shell:
            return True
        if command.name == "train" and isinstance(run := outputs.get("run"), str):
            return (self.project.runs_path / run).is_dir()
        if command.name.startswith("data ") and isinstance(reference := outputs.get("reference"), str):
            return open_catalog(self._located.datasets, self._located).holds(reference)
        return True

    @cached_property
    def _located(self) -> Project:
        return locate(self.project)
