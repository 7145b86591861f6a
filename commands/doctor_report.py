"""A health report for people: the worst first, each with what was seen, against what, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from aifx.commands.terminal import Output
from aifx.health.report import Finding, Report, Skipped, counts, folded, num_words
from aifx.sanitize import one_line

Row: TypeAlias = tuple[str, str, str, str]
MANY = 3
STYLES = {"critical": "bold red", "unknown": "bold magenta", "warning": "yellow", "info": "cyan"}
STATUS_STYLES = {"healthy": "bold green", "warning": "bold yellow", "unhealthy": "bold red", "unknown": "bold magenta"}


def show(out: Output, report: Report, ids: Sequence[str]) -> None:
    """The report on stdout. Nothing with --json.

    Args:
        ids: the rules that were chosen.
    """
    if out.json:
        return
    told = f" ({counts(report)}; {num_words(report, ids)}, {report.duration_s:.1f} s)"
    show_status(out, f"{report.host or 'this machine'}: ", report.status, told)
    show_findings(out, report.findings)
    if report.skipped:
        out.print("")
        whys = _by_reason(report.skipped).items()
        show_rows(out, (("skipped   ", "dim", f"{', '.join(_shortened(names))}: {why}", "dim") for why, names in whys))


def show_status(out: Output, whose: str, status: str, told: str) -> None:
    """The first line."""
    from rich.text import Text

    out.row(Text(one_line(whose)), Text.assemble((status, STATUS_STYLES[status]), one_line(told)))


def show_findings(out: Output, findings: Iterable[Finding]) -> None:
    for finding, ids in folded(findings):
        out.print("")
        show_rows(out, _block(finding, ids))


def show_rows(out: Output, rows: Iterable[Row]) -> None:
    """Labels and texts, each with its style. Machines sent them: they must steer no terminal."""
    from rich.text import Text

    for label, label_style, text, style in rows:
        out.row(Text(one_line(label), label_style), Text(one_line(text), style))


def details(rows: Mapping[str, str], indent: int = 10, width: int = 9) -> list[Row]:
    """What stands under a finding; nothing for what is empty."""
    return [(f"{'':{indent}}{name:{width}}", "dim", text, "") for name, text in rows.items() if text]


def _block(finding: Finding, ids: list[str]) -> list[Row]:
    severity = (f"{finding.severity:10}", STYLES[finding.severity])
    many = len(set(ids)) > 1
    if finding.severity == "unknown":
        reason = finding.summary.partition(": ")[2]
        what = f"{len(set(ids))} rules" if many else finding.id
        said = f"{what} could not be judged: {reason}"
        rows = {"rules": ", ".join(_shortened(list(dict.fromkeys(ids)))) if many else "", "do": finding.action}
    else:
        where = f"{finding.device}: " if finding.device and finding.device not in finding.summary else ""
        said = where + finding.summary
        rows = {
            "rule": finding.id,
            "seen": finding.evidence,
            "fails if": f"{finding.threshold} ({finding.source})",
            "do": finding.action,
        }
    return [(*severity, said, "bold"), *details(rows)]


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
