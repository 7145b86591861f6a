"""A health report for people: the worst first, each with what was seen, against what, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aifx.commands.terminal import Output
from aifx.health.report import Finding, Report, Skipped, counts, folded

if TYPE_CHECKING:
    from rich.text import Text

MANY = 3
STYLES = {"critical": "bold red", "unknown": "bold magenta", "warning": "yellow", "info": "cyan"}
STATUS_STYLES = {"healthy": "bold green", "warning": "bold yellow", "unhealthy": "bold red", "unknown": "bold magenta"}


def show(out: Output, report: Report, num_rules: int) -> None:
    """The report on stdout. Nothing with --json."""
    if out.json:
        return
    out.print(_headline(report, num_rules))
    show_findings(out, report.findings)
    if report.skipped:
        out.print("")
        for why, names in _by_reason(report.skipped).items():
            out.print(_line([("skipped   ", "dim"), (f"{', '.join(_shortened(names))}: {why}", "dim")]))


def show_findings(out: Output, findings: Iterable[Finding]) -> None:
    for finding, ids in folded(findings):
        out.print("")
        for line in _block(finding, ids):
            out.print(line)


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
        rows = {"rules": ", ".join(_shortened(list(dict.fromkeys(ids)))) if many else "", "do": finding.action}
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


def _shortened(names: list[str]) -> list[str]:
    """A family of which many are there is named once; --json has them all."""
    families = Counter(name.split(".", 1)[0] for name in names)
    shown = ((name, name.split(".", 1)[0]) for name in names)
    words = [f"{family}.* ({families[family]} rules)" if families[family] > MANY else name for name, family in shown]
    return list(dict.fromkeys(words))


def _line(parts: list[tuple[str, str]]) -> Text:
    from rich.text import Text

    text = Text(overflow="fold")
    for part, style in parts:
        text.append(part, style)
    return text
