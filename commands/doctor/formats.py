"""Print a health report as one line with an exit code, for monitoring systems.

Nagios: https://nagios-plugins.org/doc/guidelines.html; node-problem-detector: its docs/custom_plugin_monitor.md and
pkg/custompluginmonitor/types (0 OK, 1 NonOK, everything else Unknown).
"""

from __future__ import annotations

import sys
from collections import Counter
from enum import StrEnum
from typing import NoReturn

from aifx.commands.doctor.monitor_protocols import NPD_LENGTH, ProtocolExit, cut
from aifx.commands.doctor.options import exit_code
from aifx.core.sanitize import one_line
from aifx.health.report import SEVERITIES, Report, counts


class Format(StrEnum):
    """The reader of the report."""

    TEXT = "text"
    NAGIOS = "nagios"
    NPD = "npd"


NAGIOS = {"healthy": ("OK", 0), "warning": ("WARNING", 1), "unhealthy": ("CRITICAL", 2), "unknown": ("UNKNOWN", 3)}


def nagios(report: Report) -> tuple[str, int]:
    """Return `AIFX STATUS - text | figures` and the exit code. A limit of `0` alerts on any finding."""
    word, code = NAGIOS[report.status]
    summary = f"{report.host or 'this machine'}: {counts(report)}"
    if report.findings:
        summary += f": {report.findings[0].headline}"
    found = Counter(finding.severity for finding in report.findings)
    limits = {"critical": ";0", "warning": "0;"}
    figures = [f"{severity}={found[severity]};{limits.get(severity, ';')};0" for severity in SEVERITIES]
    text = cut(one_line(summary).replace("|", "/"), 400)
    return f"AIFX {word} - {text} | {' '.join(figures)} duration={report.duration_s:.3f}s;;;0", code


def npd(report: Report, strict: bool = False) -> tuple[str, int]:
    """Return a message as long as a node condition may be, and the exit code. Warnings are OK, unless `strict`."""
    code = exit_code(report.status, strict)
    if not report.findings:
        return "healthy", code
    more = len(report.findings) - 1
    return cut(one_line(report.findings[0].headline), NPD_LENGTH, f" (+{more})" if more else ""), code


def write_for_monitor(report: Report, form: Format, strict: bool) -> NoReturn:
    """Print the line and end the command. Raises ProtocolExit."""
    line, code = nagios(report) if form is Format.NAGIOS else npd(report, strict)
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # a line that cannot be written is not a verdict
    raise ProtocolExit(code)
