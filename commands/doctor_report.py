"""A health report for people: the worst first, each with what was seen, against what, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aifx.commands.terminal import Output
from aifx.health.report import SEVERITIES, Finding, Report, Skipped

if TYPE_CHECKING:
    from rich.text import Text

STYLES = {"critical": "bold red", "unknown": "bold magenta", "warning": "yellow", "info": "cyan"}
STATUS_STYLES = {"healthy": "bold green", "warning": "bold yellow", "unhealthy": "bold red", "unknown": "bold magenta"}


def show(out: Output, report: Report, num_rules: int) -> None:
    """The report on stdout. Nothing with --json."""
    if out.json:
        return
    out.print(_headline(report, num_rules))
    for finding, ids in folded(report.findings):
        out.print("")
        for line in _block(finding, ids):
            out.print(line)
    if report.skipped:
        out.print("")
        for why, names in _by_reason(report.skipped).items():
            out.print(_line([("skipped   ", "dim"), (", ".join(names), "dim"), (f": {why}", "dim")]))


def counts(report: Report) -> str:
    """ "1 critical, 2 warnings", or "no finding"."""
    found = Counter(finding.severity for finding in report.findings)
    words = [f"{found[s]} {s}{'s' if s == 'warning' and found[s] > 1 else ''}" for s in SEVERITIES if found[s]]
    return ", ".join(words) or "no finding"


def folded(findings: Iterable[Finding]) -> list[tuple[Finding, list[str]]]:
    """Findings with the rules that they stand for: what keeps many rules from being judged is told once."""
    kept: dict[object, tuple[Finding, list[str]]] = {}
    for finding in findings:
        reason = finding.summary.partition(": ")[2]
        key = (reason, finding.action) if finding.severity == "unknown" else len(kept)
        kept.setdefault(key, (finding, []))[1].append(finding.id)
    return list(kept.values())


def _headline(report: Report, num_rules: int) -> Text:
    skipped = f", {len(report.skipped)} skipped" if report.skipped else ""
    return _line(
        [
            (f"{report.host or 'this machine'}: ", ""),
            (report.status, STATUS_STYLES[report.status]),
            (f" ({counts(report)}; {num_rules} rules{skipped}, {report.duration_s:.1f} s)", ""),
        ]
    )


def _block(finding: Finding, ids: list[str]) -> list[Text]:
    severity = (f"{finding.severity:10}", STYLES[finding.severity])
    many = len(set(ids)) > 1
    if finding.severity == "unknown":
        reason = finding.summary.partition(": ")[2]
        what = f"{len(set(ids))} rules" if many else finding.id
        first = [severity, (f"{what} could not be judged: {reason}", "bold")]
        rows = {"rules": ", ".join(dict.fromkeys(ids)) if many else "", "do": finding.action}
    else:
        where = f"{finding.device}: " if finding.device and finding.device not in finding.summary else ""
        first = [severity, (where + finding.summary, "bold")]
        rows = {
            "rule": finding.id,
            "seen": finding.evidence,
            "fails if": f"{finding.threshold} ({finding.source})",
            "do": finding.action,
        }
    lines = [_line(first)]
    lines += [_line([(f"          {name:9}", "dim"), (text, "")]) for name, text in rows.items() if text]
    return lines


def _by_reason(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for one in skipped:
        reasons.setdefault(one.why, []).append(one.id)
    return reasons


def _line(parts: list[tuple[str, str]]) -> Text:
    from rich.text import Text

    text = Text(overflow="fold")
    for part, style in parts:
        text.append(part, style)
    return text
