"""Reports of doctor and monitor outside of a station: records from which events are derived.

    line/doctor.jsonl     {"time": ..., "host": ..., "command": ..., "rules": [...], "findings": [...]}
    line/monitor.jsonl    {"time": ..., "model": ..., "source": ..., "reference": ..., "drifted": [], "breached": []}

A station's report is in the journal. Another call, of a person or a timer, leaves records if its project has a
line.toml, and only of what changed since the last record: other critical findings of a node, or other columns that
drifted and limits that were breached between the same rows, or those of another version of the same data set. A check
in each minute is one event.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.core.errors import AifxError
from aifx.core.json_files import JsonLines, read_jsonl
from aifx.core.project import find_project

MOST_TEXT = 2000
"""Characters of a reason that an event has at most."""

logger = logging.getLogger(__name__)

Findings = list[Mapping[str, Any]]


@dataclass(frozen=True)
class ReportRecords:
    """A file of records.

    Attributes:
        file: its name in `line/`.
        subject: keys of what a record is about.
        facts: keys of lists. A subject without a record has empty ones.
    """

    file: str
    subject: tuple[str, ...]
    facts: tuple[str, ...]

    def leave(self, records: Sequence[Mapping[str, Any]], root: Path) -> None:
        """Append the records whose facts differ from the last ones of their subject. A failure is only logged."""
        path = root / "line" / self.file
        try:
            before = {self._subject_of(one): self._facts_of(one) for one in read_jsonl(path)}
            none = self._facts_of({})
            new = [one for one in records if self._facts_of(one) != before.get(self._subject_of(one), none)]
            if new:
                file = JsonLines(path)
                for record in new:
                    file.append({"time": time.time(), **record})
                file.close()
        except (AifxError, OSError) as e:
            logger.warning("no event will tell of this report: %s", e)

    def _subject_of(self, record: Mapping[str, Any]) -> str:
        # The version of the rows is left out: each batch of new rows is another one.
        values = {key: record.get(key) for key in self.subject}
        if isinstance(source := values.get("source"), str):
            values["source"] = re.sub(r"@[0-9a-f]+(?=[,\s]|$)", "", source)
        return repr(values)  # a damaged record may hold what has no hash

    def _facts_of(self, record: Mapping[str, Any]) -> list[Any]:
        return [record.get(key) or [] for key in self.facts]


DOCTOR = ReportRecords("doctor.jsonl", ("host",), ("rules",))
MONITOR = ReportRecords("monitor.jsonl", ("model", "source", "reference"), ("drifted", "breached"))


def leave_doctor_report(report: Mapping[str, Any], command: str) -> None:
    """Write down for events which nodes are unhealthy now."""
    try:
        root = find_project().root
    except AifxError:
        return
    if not _has_events(root):
        return
    found = unhealthy(report)
    nodes = [report["host"]] if "host" in report else [str(one.get("node")) for one in report.get("nodes") or ()]
    records = []
    for host in dict.fromkeys([*nodes, *found]):
        findings = found.get(host, [])
        rules = sorted(f"{one.get('id')} {one.get('device')}" for one in findings)
        records.append({"host": host, "command": command, "rules": rules, "findings": summaries(findings)})
    DOCTOR.leave(records, root)


def leave_monitor_report(report: Mapping[str, Any], root: Path) -> None:
    """Write down for events which columns drifted and which limits were breached."""
    if _has_events(root):
        MONITOR.leave([{key: report[key] for key in (*MONITOR.subject, *MONITOR.facts)}], root)


def _has_events(root: Path) -> bool:
    from aifx.lines.file import LINE  # it costs time that a report outside of a line need not take

    return "AIFX_LINE_STATION" not in os.environ and (root / LINE).is_file()


def unhealthy(report: Mapping[str, Any]) -> dict[str, Findings]:
    """The unhealthy nodes of a report of `aifx doctor`, `doctor fleet` or `doctor bisect`, with what is wrong."""
    if "host" in report:
        return {str(report["host"]): list(_critical(report))} if report.get("status") == "unhealthy" else {}
    nodes = [node for node in report.get("nodes") or () if isinstance(node, Mapping)]
    found = {str(node.get("node")): list(_critical(node)) for node in nodes if node.get("status") == "unhealthy"}
    for finding in _critical(report):  # across nodes, such as one that does not answer
        found.setdefault(str(finding.get("device")), []).append(finding)
    return found


def _critical(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for one in report.get("findings") or ():
        if isinstance(one, Mapping) and one.get("severity") == "critical":
            yield one


def summaries(findings: Findings) -> list[str]:
    return [str(one.get("summary"))[:MOST_TEXT] for one in findings]
