"""`aifx doctor diff`: compare two snapshots of a node."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.options import SiteOption
from aifx.core.sanitize import one_line

if TYPE_CHECKING:
    from aifx.verbs.health import Difference, Finding

MAX_CELL = 60


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="Snapshot that --record wrote.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Later snapshot, or one of a node that should be equal.")],
    all_: Annotated[
        bool,
        typer.Option(
            "--all", help="Also show facts that change on a healthy machine, with the reason why they are left out."
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Also exit 1 for new findings that are not critical.")
    ] = False,
    site: SiteOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two snapshots: the findings and facts that came, went and changed.

    Exit 0: B has no new critical finding (with --strict: no new finding); 1: it has one; 2: aifx cannot read a file.

    Examples:
        aifx doctor diff monday.json today.json
        aifx doctor diff good-node.json bad-node.json --all
    """
    with terminal(json) as out:
        from aifx.verbs.health import doctor_diff

        compared = doctor_diff(before, after, strict=strict, site=site)
        out.result(compared)
        if not out.json:
            _show(out, compared.difference, all_)


def _show(out: Output, found: Difference, all_: bool) -> None:
    times = [f"{datetime.fromtimestamp(side.time):%Y-%m-%d %H:%M}" for side in (found.a, found.b)]
    right = times[1] if found.a.host == found.b.host else f"{found.b.host} {times[1]}"
    out.print(f"{found.a.host} {times[0]} ({found.a.status}) -> {right} ({found.b.status})")
    moved = f"{len(found.came)} came, {len(found.went)} went, {len(found.changed)} changed"
    booted = "; it was booted in between" if found.rebooted else ""
    out.print(f"findings: {moved}; facts changed: {sum(not f.noise for f in found.facts)}{booted}")
    for finding in found.came:
        _finding(out, "came", finding, {"rule": finding.id, "seen": finding.evidence, "do": finding.action})
    for finding in found.went:
        _finding(out, "went", finding, {"rule": finding.id})
    for pair in (*found.changed, *(found.figures if all_ else ())):
        old, new = pair.before, pair.after
        grown = f"{old.severity} -> {new.severity}: " if old.severity != new.severity else ""
        was = f"{grown}was: {old.summary} ({old.evidence})"
        _finding(out, "changed", new, {"rule": new.id, "": was, "seen": new.evidence, "do": new.action})
    facts = [f for f in found.facts if all_ or not f.noise]
    if facts:
        out.print("")
        columns = ["fact", *(["left out as"] if all_ else []), "A -> B"]
        rows = [(f.fact, *([f.noise] if all_ else []), f"{_cell(f.before)} -> {_cell(f.after)}") for f in facts]
        out.table(columns, rows, wrap=True)
    if found.not_compared:
        rules = sum("." in name for name in found.not_compared)
        parts = [name for name in found.not_compared if "." not in name]
        out.print("")
        words = ", ".join([*parts, *([f"{rules} rules"] if rules else [])])
        out.print(f"not compared, since only one of them has it: {words}")
    left_out = len(found.figures) + sum(bool(f.noise) for f in found.facts)
    if left_out and not all_:
        out.log(f"{left_out} changes left out: counters, loads, temperatures and times (--all shows them)")


def _finding(out: Output, mark: str, finding: Finding, rows: Mapping[str, str]) -> None:
    from aifx.commands.doctor.report import STYLES, details, show_rows

    out.print("")
    first = (f"{mark:8}{finding.severity:10}", STYLES[finding.severity], finding.headline, "")
    show_rows(out, [first, *details(rows, 8, 10)])


def _cell(value: Any) -> str:
    """Return a value of a snapshot's JSON for a table."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        missing = [f"{name}: {value[f'${name}']}" for name in ("absent", "unknown") if f"${name}" in value]
        text = missing[0] if missing else "there"
    elif isinstance(value, list):
        text = ", ".join(str(item) for item in value) or "none"
    else:
        text = str(value) if not isinstance(value, bool) else "yes" if value else "no"
    text = one_line(text)
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 3]}..."
