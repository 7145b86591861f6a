"""What the texts of a line mean in one tick."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.data.versions.catalog import open_catalog
from aifx.lines.bindings import TICK, bind, locate
from aifx.lines.commands import find_command
from aifx.lines.conditions import Term
from aifx.lines.file import Line, Station
from aifx.lines.keys import ProjectCode, station_key
from aifx.lines.names import is_made, subject_name
from aifx.lines.schedule import is_due, parse_duration
from aifx.registry.roots import open_root


class LineMeaning:
    """The meaning of a line's texts in a tick. The project's code is read once, so that it is the same for all.

    Attributes:
        bindings: that the tick fixed (`fix_bindings`).
        now: Unix time that the tick is for.
    """

    def __init__(self, line: Line, project: Project, bindings: Mapping[str, str], now: float) -> None:
        self.line, self.project, self.bindings, self.now = line, project, bindings, now
        self.code = ProjectCode(project)

    def holds(
        self, station: Station, seen: Mapping[str, str], begins: Sequence[float], outcome_of: Callable[[str], str]
    ) -> str:
        """Return why a station's condition does not hold; empty if it does.

        A station that was started in this tick is not judged again, so that one tick has one answer.

        Args:
            seen: what names meant when the attempt of its last usable end began; empty if there is none.
            begins: Unix times of the begins of all attempts whose ends can be used.
            outcome_of: returns the outcome of the last end of a station, "" if it has none.
        """
        if not station.when or seen.get(TICK) == self.bindings[TICK]:
            return ""

        def is_true(term: Term) -> bool:
            if term.kind == "changed":
                name = subject_name(term.subject)
                return name in self.bindings and self.bindings[name] != seen.get(name)
            if term.kind == "every":
                return is_due(begins, self.now, parse_duration(term.subject), self.line.timezone)
            return outcome_of(term.subject) == term.kind

        return "" if station.condition.judge(is_true) else f"not: {station.when}"

    def missing(self, station: Station) -> list[str]:
        """Return the names of the station's condition that mean nothing and that no station makes."""
        changed = dict.fromkeys(term.subject for term in station.condition.terms() if term.kind == "changed")
        unknown = [subject for subject in changed if subject_name(subject) not in self.bindings]
        return [subject for subject in unknown if not is_made(subject_name(subject), self.line, self.project)]

    def key(self, station: Station, identities: Mapping[str, Any]) -> str:
        """Return the digest of what a station works on, given the identities of what the stations before it made."""
        return station_key(self.line, station, self.bindings, identities, self.code)

    def commands(self, station: Station, key: str, outputs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
        """Return the words of a station's commands. Raises UsageError for a name that means nothing."""
        return bind(station, self.bindings, outputs, key)

    def is_present(self, station: Station, outputs: Mapping[str, Any]) -> bool:
        """Return whether what a station made last is still there: its run, or its versions of data or of a model.

        Args:
            outputs: the document of its last command.
        """
        if station.shell or station.on == "k8s":  # its runs are on a volume of the cluster
            return True
        match find_command(station.written[-1]).makes:
            case "run":
                return not isinstance(run := outputs.get("run"), str) or (self.project.runs_path / run).is_dir()
            case "data":
                catalog = open_catalog(self._located.datasets, self._located)
                return all(catalog.holds(reference) for reference in _references(outputs))
            case "model":
                return self._has_model(outputs)
        return True

    def _has_model(self, outputs: Mapping[str, Any]) -> bool:
        try:
            return not open_root(None, self._located).find(f"{outputs['name']}@{outputs['digest']}")[1].is_withdrawn
        except (KeyError, UsageError):
            return False

    @cached_property
    def _located(self) -> Project:
        return locate(self.project)


def _references(outputs: Mapping[str, Any]) -> Iterator[str]:
    """The versions of data sets that a document of `aifx data` names as those that were made."""
    made = outputs.get("data_sets")
    for one in made if isinstance(made, list) else (outputs,):
        if isinstance(one, Mapping) and isinstance(reference := one.get("reference"), str):
            yield reference
