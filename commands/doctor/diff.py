"""`aifx doctor diff`: compare two snapshots of a node."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.sanitize import one_line

if TYPE_CHECKING:
    from aifx.health.diff import Difference
    from aifx.health.report import Finding
    from aifx.health.snapshot import Snapshot

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
    site: Annotated[
        Path | None, typer.Option("--site", metavar="FILE", help="Read the site's rules from FILE.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare two snapshots: the findings and facts that came, went and changed.

    Exit 0: B has no new critical finding (with --strict: no new finding); 1: it has one; 2: aifx cannot read a file.

    Examples:
        aifx doctor diff monday.json today.json
        aifx doctor diff good-node.json bad-node.json --all
    """
    with terminal(json) as out:
        from aifx.health import diff as library
        from aifx.health.rules import load_rules, read_site
        from aifx.health.snapshot import read

        sites = read_site(site)
        a, b = read(before), read(after)
        found = library.diff(a, b, load_rules(sites).values(), sites)
        sides = {"a": _side(a, found.before.status), "b": _side(b, found.after.status)}
        out.document({**sides, **found.document(), "worse": found.worse})
        _show(out, a, b, found, all_)
        raise SystemExit(int(found.worse if strict else found.new_critical))


def _side(snapshot: Snapshot, status: str) -> dict[str, Any]:
    return {"host": snapshot.host, "time": snapshot.time, "aifx": snapshot.version, "status": status}


def _show(out: Output, a: Snapshot, b: Snapshot, found: Difference, all_: bool) -> None:
    if out.json:
        return
    times = [f"{datetime.fromtimestamp(s.time):%Y-%m-%d %H:%M}" for s in (a, b)]
    left, right = f"{a.host} {times[0]}", times[1] if a.host == b.host else f"{b.host} {times[1]}"
    out.print(f"{left} ({found.before.status}) -> {right} ({found.after.status})")
    out.print(_headline(found))
    for mark, findings in (("came", found.came), ("went", found.went)):
        for finding in findings:
            _finding(out, mark, finding)
    for old, new in (*found.changed, *(found.figures if all_ else ())):
        grown = f"{old.severity} -> {new.severity}: " if old.severity != new.severity else ""
        _finding(out, "changed", new, f"{grown}was: {old.summary} ({old.evidence})")
    facts = [f for f in found.facts if all_ or not f.noise]
    if facts:
        out.print("")
        columns = ["fact", *(["left out as"] if all_ else []), "A -> B"]
        rows = [(f.fact, *([f.noise] if all_ else []), f"{_cell(f.before)} -> {_cell(f.after)}") for f in facts]
        out.table(columns, rows, wrap=True)
    if found.not_compared:
        rules = sum("." in name for name in found.not_compared)
        parts = [name for name in found.not_compared if "." not in name]
        words = [*parts, *([f"{rules} rules"] if rules else [])]
        out.print("")
        out.print(f"not compared, since only one of them has it: {', '.join(words)}")
    left_out = len(found.figures) + sum(bool(f.noise) for f in found.facts)
    if left_out and not all_:
        out.log(f"{left_out} changes left out: counters, loads, temperatures and times (--all shows them)")


def _headline(found: Difference) -> str:
    facts = sum(not f.noise for f in found.facts)
    words = [f"{len(found.came)} came", f"{len(found.went)} went", f"{len(found.changed)} changed"]
    text = f"findings: {', '.join(words)}; facts changed: {facts}"
    return text + ("; it was booted in between" if found.rebooted else "")


def _finding(out: Output, mark: str, finding: Finding, more: str = "") -> None:
    from aifx.commands.doctor.report import STYLES, details, show_rows

    rows = {
        "rule": finding.id,
        "": more,
        "seen": finding.evidence if mark != "went" else "",
        "do": finding.action if mark != "went" else "",
    }
    out.print("")
    first = (f"{mark:8}{finding.severity:10}", STYLES[finding.severity], finding.headline, "")
    show_rows(out, [first, *details(rows, 8, 10)])


def _cell(value: Any) -> str:
    """Return a value of a snapshot's JSON for a table."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        words = [
            f"{name}: {value[key]}" for key, name in (("$absent", "absent"), ("$unknown", "unknown")) if key in value
        ]
        text = words[0] if words else "there"
    elif isinstance(value, list):
        text = ", ".join(str(item) for item in value) or "none"
    else:
        text = {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    text = one_line(text)
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 3]}..."
