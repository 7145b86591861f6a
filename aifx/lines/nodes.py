"""Unhealthy nodes: those that a report of doctor names, and a record of what a person's call of it found.

    line/doctor.jsonl    {"time": ..., "host": ..., "command": ..., "rules": [...], "findings": [...]}

A station's report is in the journal. Another call, of a person or a timer, leaves a record per node if its project has
a line.toml, and only if the node's critical findings changed: a check in each minute is one event.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from aifx.core.errors import AifxError
from aifx.core.json_files import JsonLines, read_jsonl
from aifx.core.project import find_project

DOCTOR = "doctor.jsonl"

MOST_TEXT = 2000
"""Characters of a reason that an event has at most."""

logger = logging.getLogger(__name__)

Findings = list[Mapping[str, Any]]


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


def leave_report(report: Mapping[str, Any], command: str) -> None:
    """Write down for events which nodes are unhealthy now, outside of a station. A failure is only logged."""
    if "AIFX_LINE_STATION" in os.environ:
        return
    try:
        root = find_project().root
    except AifxError:
        return
    from aifx.lines.file import LINE  # a check outside of a project has no need of it

    if not (root / LINE).is_file():
        return
    found, path = unhealthy(report), root / "line" / DOCTOR
    nodes = [report["host"]] if "host" in report else [str(one.get("node")) for one in report.get("nodes") or ()]
    try:
        before = {str(one.get("host")): one.get("rules") for one in read_jsonl(path)}
        new = []
        for host in dict.fromkeys([*nodes, *found]):
            findings = found.get(host, [])
            rules = sorted(f"{one.get('id')} {one.get('device')}" for one in findings)
            if rules != before.get(host, []):
                what = {"command": command, "rules": rules, "findings": summaries(findings)}
                new.append({"time": time.time(), "host": host, **what})
        if new:
            file = JsonLines(path)
            for record in new:
                file.append(record)
            file.close()
    except (AifxError, OSError) as e:
        logger.warning("no event will tell of this report: %s", e)
