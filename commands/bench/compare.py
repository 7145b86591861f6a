"""`aifx bench show`, `compare`: what was measured, by itself and beside what was measured before."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.benchmarking import units
from aifx.commands.bench.measuring import OnlyOption
from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError, did_you_mean
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.benchmarking.compare import Compared, Comparison
    from aifx.benchmarking.results import Report


def show(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[REPORT]", help="Report to show: NAME, NAME@COMMIT or a file. By default the last one."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a saved report, or the last one.

    Examples:
        aifx bench show
        aifx bench show main
    """
    with terminal(json) as out:
        from aifx.benchmarking.results import read_report
        from aifx.benchmarking.store import last_path, open_store
        from aifx.commands.bench.report import show as show_report

        report = open_store().find(what) if what else read_report(last_path())
        out.document(report.document())
        out.print(_made(report))
        show_report(out, report)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="First report: NAME, NAME@COMMIT or a file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Second report.")],
    only: OnlyOption = None,
    json: JsonOption = False,
) -> None:
    """List the results that are slower or faster in B than in A.

    Exit 0: compared, with any result; 2: a report cannot be read, or the two cannot be compared.

    Examples:
        aifx bench compare main now.json
        aifx bench compare main@3f2a9c1d main
    """
    with terminal(json) as out:
        from aifx.benchmarking import compare as library
        from aifx.benchmarking.store import open_store

        store = open_store()
        before, after = store.find(a), store.find(b)
        refuse(a, b, before.fingerprint.obstacles(after.fingerprint))
        names = only_known(only or [], b, before, after)
        compared = library.compare(before, after, names)
        if not compared.results:
            raise UsageError(f"{a} and {b} have no result in common", in_short(compared), f"aifx bench show {a}")
        out.document(compared.document(library.side(before, a), library.side(after, b)))
        show_compared(out, before, after, a, b, compared)


def only_known(only: list[str], source: str, *reports: Report) -> tuple[str, ...]:
    """Names of results, each of which one of the reports has. Raises UsageError for one that none of them has, with a
    hint to the source of the last report."""
    known = {result.name for report in reports for result in report.results}
    known |= {name.partition(".")[0] for name in known}
    for name in only:
        if name not in known:
            raise UsageError(f"no result {name!r}", did_you_mean(name, known), f"aifx bench show {source}")
    return tuple(only)


def refuse(a: str, b: str, obstacles: list[str]) -> None:
    """Raises UsageError where there is an obstacle to holding b against a."""
    if obstacles:
        from aifx.benchmarking.store import to_save

        what, hint = "were measured on different hardware and do not compare", "keeps a baseline of this machine"
        raise UsageError(f"{a} and {b} {what}", "; ".join(obstacles), f"{to_save('NAME')} {hint}")


def _made(report: Report) -> str:
    """When, of which commit, how often."""
    launches = counted(report.launches, "launch", "es")
    return f"{local_time(report)}, {report.fingerprint.commit or 'no commit'}, {launches}"


def local_time(report: Report) -> str:
    return f"{datetime.fromtimestamp(report.time):%Y-%m-%d %H:%M}"


def show_compared(out: Output, before: Report, after: Report, a: str, b: str, compared: Compared) -> None:
    """The two reports, the table, then what is to be known of it."""
    from aifx.benchmarking.estimate import SIGNIFICANCE

    for mark, name, report in (("A", a, before), ("B", b, after)):
        out.print(f"{mark}  {name}: {_made(report)}")
        if report.failure:
            out.print(f"   not whole: {report.failure.what}")
    out.print("")
    _table(out, compared.results)
    out.print("")
    out.print(f"A and B are medians; change and p go by {_basis(compared)}")
    for words in _missing(compared):
        out.print(words)
    if compared.differences:
        out.print(f"differs: {'; '.join(compared.differences)}")
    judged = sum(found.change.p is not None for found in compared.results)
    if judged * 2 * SIGNIFICANCE >= 1:
        chance = round(judged * 2 * SIGNIFICANCE)
        out.print(f"of {judged} results that did not change, {chance} would be called slower or faster by chance")


def _basis(compared: Compared) -> str:
    """What represents a launch."""
    from aifx.benchmarking.estimate import MIDDLE

    if all(found.after.compared_at == MIDDLE for found in compared.results):
        return "medians of the requests"
    requests = any(found.after.compared_at == MIDDLE for found in compared.results)
    return f"lower deciles, which little disturbs{', or medians of requests' * requests}"


def _table(out: Output, results: list[Comparison]) -> None:
    """A line a result; on a terminal that is too narrow for it two, where a table would break its words."""
    from rich.text import Text

    columns = ["result", "A", "B", "change", "95 % interval", "p", "verdict"]
    rows = []
    for found in results:
        seen, times = found.change, [units.duration(one.median_s) for one in (found.before, found.after)]
        interval = f"{units.change(seen.low)} to {units.change(seen.high)}"
        p = "-" if seen.p is None else f"{seen.p:.4f}"
        verdict = f"{found.verdict}: {found.why}" if found.why else found.verdict
        rows.append((found.after.title, *times, units.change(seen.ratio), interval, p, verdict))
    width = sum(max(map(len, cells)) + len("  ") for cells in zip(columns, *rows, strict=True))
    if not out.out.is_terminal or width <= out.out.width:
        out.table(columns, rows, right=columns[1:6])
        return
    for name, before, after, change, interval, p, verdict in rows:
        chance = "" if p == "-" else f", p {p}"
        word, _, why = verdict.partition(": ")
        out.print(Text(name))
        text = f"{word}, {change} ({interval}{chance}): A {before}, B {after}{'; ' * bool(why)}{why}"
        out.row(Text("  "), Text(text))


def in_short(compared: Compared) -> str:
    """What each has alone."""
    return "; ".join(_missing(compared))


def _missing(compared: Compared) -> list[str]:
    sides = (("A", compared.only_before), ("B", compared.only_after))
    return [f"only in {mark}: {units.listed([r.title for r in results], 6)}" for mark, results in sides if results]
