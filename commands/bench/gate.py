"""`aifx bench gate`: fail if a result is slower than its baseline by more than the threshold and the noise."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.benchmarking import units
from aifx.commands.bench.compare import in_short, only_known, refuse, show_compared
from aifx.commands.bench.measuring import OnlyOption, OutputOption, read_share
from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.benchmarking.compare import Comparison, Gated
    from aifx.benchmarking.fingerprint import Fingerprint
    from aifx.benchmarking.results import Report, Result
    from aifx.commands.bench.measuring import Running


def gate(
    baseline: Annotated[str, typer.Option("--baseline", metavar="NAME", help="Baseline: NAME, NAME@COMMIT or a file.")],
    max_regression: Annotated[
        str, typer.Option("--max-regression", metavar="SHARE", help="Maximum slowdown of a result.")
    ] = "5%",
    max_launches: Annotated[
        int, typer.Option("--max-launches", min=5, max=100, metavar="N", help="Maximum number of launches per suite.")
    ] = 20,
    only: OnlyOption = None,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="Check this report instead of measuring.")
    ] = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure again what a baseline measured, and fail if a result is slower.

    A result has regressed if its slowdown exceeds both --max-regression and the noise. Exit 0: no regression; 1: a
    regression; 2: the reports cannot be compared, or aifx could not measure.

    Examples:
        aifx bench gate --baseline main --max-regression 5%
        aifx bench gate --baseline main --only train.step
        aifx bench train --output now.json --launches 5
        aifx bench gate --baseline main --results now.json
    """
    with terminal(json) as out, sigterm_as_ctrl_c():
        from aifx.benchmarking import compare as library
        from aifx.benchmarking.results import read_report, write_report
        from aifx.benchmarking.store import open_store

        kept: AbstractContextManager[None] = nullcontext()
        bound = read_share(max_regression, "--max-regression")
        before = open_store().find(baseline)
        names = only_known(only or [], baseline, before)
        if results:
            after, source, option = read_report(results), str(results), "--launches"
            _refuse(baseline, source, before, after)
            gated = library.gate(before, after, bound, names)
        else:
            running, after, gated = _measure(out, baseline, before, bound, names, max_launches)
            kept, source, option = running.naming_the_copy(), "now", "--max-launches"
        with kept:
            if output:
                write_report(after, output)
            after.raise_failure()
            _decide(gated, option)
        out.document(gated.document(library.side(before, baseline), library.side(after, source)))
        show_compared(out, before, after, baseline, source, gated.compared)
        if gated.regressed:  # what may be why; the verdict comes last
            for name, report in ((baseline, before), (source, after)):
                for note in report.notes:
                    out.print(f"note ({name}): {note}")
        _show_verdict(out, gated)
        raise SystemExit(int(bool(gated.regressed)))


def _measure(
    out: Output, baseline: str, before: Report, bound: float, names: tuple[str, ...], most: int
) -> tuple[Running, Report, Gated]:
    """What the baseline's request asks for, measured now, each suite as often as then; what may be slower is launched
    until that can be decided. Raises UsageError before that if some result could not be compared with the baseline."""
    from aifx.benchmarking.adaptive import until_decided
    from aifx.benchmarking.compare import chosen
    from aifx.benchmarking.estimate import LEAST_LAUNCHES
    from aifx.benchmarking.runner import check_configuration
    from aifx.benchmarking.store import to_save
    from aifx.commands.bench.measuring import Running, describe_more

    def accept(found: Fingerprint) -> None:
        refuse(baseline, "this machine", before.fingerprint.obstacles(found))

    def more(inconclusive: list[Result], counts: dict[str, int]) -> Report:
        listed = units.listed([result.title for result in inconclusive])
        out.log(f"{listed} may be slower: {describe_more(counts)} may decide")
        return running.launch(counts)

    wanted = chosen(before, names).values()
    for result in wanted:
        if (count := len(result.samples_s)) < LEAST_LAUNCHES:
            what = f"{baseline} is no baseline: {result.title} has {counted(count, 'launch', 'es')}"
            raise UsageError(what, f"{LEAST_LAUNCHES} are the least", f"{to_save('NAME')} keeps one")
    request = before.request
    if names:
        suites = {result.suite for result in wanted}
        request = request.model_copy(update={"suites": [suite for suite in request.suites if suite in suites]})
    check_configuration(request)
    counts = {suite: min(max(before.launches_of(suite), LEAST_LAUNCHES), most) for suite in request.suites}
    running = Running(out, request, accept)
    return running, *until_decided(before, running.launch(counts), bound, names, more, most)


def _refuse(baseline: str, source: str, before: Report, after: Report) -> None:
    """Raises UsageError where the two were not measured alike, or on other hardware."""
    from aifx.benchmarking.compare import asked

    if after.failure:
        why = f"the bench did not come to its end: {after.failure.what}"
        raise UsageError(f"{source} cannot be judged", why, "measure again")
    refuse(baseline, source, before.fingerprint.obstacles(after.fingerprint))
    if differences := asked(before.request, after.request):
        what = f"{baseline} and {source} do not compare: other things were asked for"
        hint = f"aifx bench gate --baseline {baseline} measures what it has to"
        raise UsageError(what, "; ".join(differences), hint)


def _decide(gated: Gated, option: str) -> None:
    """Raises UsageError where a gate can say neither yes nor no; the option is that which asks for more launches."""
    from aifx.benchmarking.estimate import LEAST_LAUNCHES

    compared = gated.compared
    if not compared.results:
        what = "the baseline and what was measured have no result in common"
        raise UsageError(what, in_short(compared), "aifx bench show lists what was measured")
    for found in compared.results:
        if min(found.launches) < LEAST_LAUNCHES:
            hint = f"aifx bench ... --launches {LEAST_LAUNCHES}"
            raise UsageError(f"{found.after.title} cannot be judged", found.why, hint)
    if gated.undecided and not gated.regressed:
        undecided = units.listed([found.after.title for found in gated.undecided])
        raise UsageError(
            f"{undecided}: slower by more than {gated.max_regression:.1%}, or by chance",
            f"among {len(compared.results)} results, some seem so in {max(gated.undecided[0].launches)} launches",
            f"measure with {option} {gated.launches}, or gate what matters: --only {gated.undecided[0].after.name}",
        )


def _show_verdict(out: Output, gated: Gated) -> None:
    for found in gated.suspected:
        p, count = found.change.p or 0.0, len(gated.compared.results)
        out.print(f"not counted: {found.after.title} seems slower (p {p:.4f}), as one of {count} may by chance")
    for found in gated.inconclusive:
        if found not in gated.suspected:
            out.print(f"inconclusive: {found.after.title} seems slower by {_reach(found)}, and may be so by chance")
    if unsure := sum(found.verdict == "unsure" for found in gated.compared.results):
        out.print(f"too noisy to say: {unsure} of {len(gated.compared.results)}")
    for found in gated.regressed:
        out.print(f"regression: {found.after.title} is slower by {_reach(found)}")
    if not gated.regressed:
        out.print(f"passed: nothing is slower by more than {gated.max_regression:.1%}, as far as these launches show")


def _reach(found: Comparison) -> str:
    change = found.change
    p = "" if change.p is None else f"; p {change.p:.4f}"
    return f"{change.ratio - 1:.1%} (95 %: {units.change(change.low)} to {units.change(change.high)}{p})"
