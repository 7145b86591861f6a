"""Print a health report for people, worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from aifx.commands.console.output import Output
from aifx.core.sanitize import one_line
from aifx.verbs.health import Finding, Group, Report, by_reason, counts, grouped, skipped_rules

Row: TypeAlias = tuple[str, str, str, str]
MANY = 3
MOST_NAMES = 16
STYLES = {"critical": "bold red", "unknown": "bold magenta", "warning": "yellow", "info": "cyan"}
STATUS_STYLES = {"healthy": "bold green", "warning": "bold yellow", "unhealthy": "bold red", "unknown": "bold magenta"}


def show(out: Output, report: Report, ids: Sequence[str], list_skipped: bool = False) -> None:
    """Print the report. This prints nothing with --json.

    Args:
        ids: the selected rules.
        list_skipped: whether to list the skipped rules, with the reasons.
    """
    if out.json:
        return
    rules = f"{len(ids)} rule{'s' * (len(ids) != 1)}"
    details = f" ({counts(report)}; {rules} in {report.duration_s:.1f} s)"
    show_status(out, f"{report.host or 'this machine'}: ", report.status, details)
    show_findings(out, report.findings)
    out.print("")
    skipped = skipped_rules(report, ids)
    others = {finding.id for finding in report.findings}.union(skipped)
    passed = Counter(name.split(".", 1)[0] for name in ids if name not in others)
    width = max(map(len, passed), default=0)
    for family, count in sorted(passed.items()):
        show_rows(out, [("passed    ", "green", f"{family:{width}}  {count:3} rule{'s' * (count != 1)}", "")])
    if list_skipped:
        for names, why, _ in by_reason([report.skipped]):
            show_rows(out, [("skipped   ", "dim", f"{', '.join(_shortened(names))}: {why}", "dim")])
    elif skipped:
        text = f"{len(skipped)} rule{'s' * (len(skipped) != 1)}; --list-skipped shows the reasons"
        show_rows(out, [("skipped   ", "dim", text, "dim")])


def show_status(out: Output, whose: str, status: str, details: str) -> None:
    """Print the first line."""
    from rich.text import Text

    out.row(Text(one_line(whose)), Text.assemble((status, STATUS_STYLES[status]), one_line(details)))


def show_findings(out: Output, findings: Iterable[Finding]) -> None:
    for group in grouped(findings):
        out.print("")
        show_rows(out, _block(group))


def show_rows(out: Output, rows: Iterable[Row]) -> None:
    """Print labels and texts with their styles. Machines sent them, so control characters are escaped."""
    from rich.text import Text

    for label, label_style, text, style in rows:
        out.row(Text(one_line(label), label_style), Text(one_line(text), style))


def details(rows: Mapping[str, str], indent: int = 10, width: int = 9) -> list[Row]:
    """Return the rows under a finding, without empty ones."""
    return [(f"{'':{indent}}{name:{width}}", "dim", text, "") for name, text in rows.items() if text]


def _block(group: Group) -> list[Row]:
    finding = group.finding
    severity = (f"{finding.severity:10}", STYLES[finding.severity])
    if finding.severity == "unknown":
        ids = list(dict.fromkeys(one.id for one in (finding, *group.others)))
        reason = finding.summary.partition(": ")[2]
        what = f"{finding.id if len(ids) == 1 else f'{len(ids)} rules'} could not be evaluated: {reason}"
        rows = {"rules": ", ".join(_shortened(ids)) if len(ids) > 1 else "", "do": finding.action}
    else:
        what = finding.headline
        rows = {
            "also": _listed([_as_other(other, finding) for other in group.others]),
            "rule": finding.id,
            "seen": finding.evidence,
            "fails if": f"{finding.threshold} ({finding.source})",
            "do": finding.action,
        }
    return [(*severity, what, "bold"), *details(rows), *_consequences(group)]


def _as_other(other: Finding, first: Finding) -> str:
    """Return only the device if it has the same fault."""
    is_alike = bool(other.device) and other.headline.replace(other.device, first.device) == first.headline
    return other.device if is_alike else other.headline


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MOST_NAMES} more (--json has them all)" if len(texts) > MOST_NAMES else ""
    separator = ", " if all(" " not in text for text in texts) else "; "
    return separator.join(texts[:MOST_NAMES]) + more


def _consequences(group: Group) -> list[Row]:
    """Return a row per rule whose findings follow from the cause."""
    by_rule: dict[str, list[Finding]] = {}
    for one in group.consequences:
        by_rule.setdefault(one.id, []).append(one)
    rows: list[Row] = []
    for rule, (first, *others) in by_rule.items():
        more = f", and {len(others)} more" if others else ""
        rows.append((f"{'':10}{'' if rows else 'causes':9}", "dim", f"{first.headline}{more} ({rule})", ""))
    return rows


def _shortened(names: list[str]) -> list[str]:
    """Return names with large families shortened; --json has all names."""
    family = {name: name.split(".", 1)[0] for name in names}
    sizes = Counter(family.values())
    return list(dict.fromkeys(f"{f}.* ({sizes[f]} rules)" if sizes[f] > MANY else name for name, f in family.items()))
