"""Measuring for `aifx bench`: its options, launches, what is kept of them, and where it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.core.errors import AifxError, UsageError
from aifx.core.lifecycle import sigterm_as_ctrl_c

if TYPE_CHECKING:
    from aifx.benchmarking.fingerprint import Fingerprint
    from aifx.benchmarking.results import Report, Request, Result


OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="RESULT", help="Compare only results of this name. Can be repeated."),
]

OutputOption = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Also write the report to FILE, as JSON.")
]


@dataclass(frozen=True)
class Measuring:
    """How a suite is measured and where its report goes: one attribute per option."""

    quick: Annotated[
        bool, typer.Option("--quick", help="Measure only the most important sizes, each for a short time.")
    ] = False
    launches: Annotated[
        int | None,
        typer.Option(
            "--launches",
            min=1,
            max=50,
            metavar="N",
            help="Number of processes that measure, one after the other. By default 3; 1 with --quick, 5 with --save.",
        ),
    ] = None
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="NAME", help="Save the report as baseline NAME. Needs five launches or more."),
    ] = None
    max_noise: Annotated[
        str, typer.Option("--max-noise", metavar="SHARE", help="Maximum relative noise allowed in a baseline.")
    ] = "4%"
    output: OutputOption = None
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report to FILE, as a page with plots.")
    ] = None
    json: JsonOption = False


@sigterm_as_ctrl_c()
def bench(out: Output, suites: list[str], options: dict[str, Any], how: Measuring) -> None:
    """Measure, show, and keep the results. Raises AifxError after that if the bench did not come to its end."""
    from aifx.benchmarking.adaptive import until_quiet
    from aifx.benchmarking.estimate import LEAST_LAUNCHES
    from aifx.benchmarking.results import Request, write_report
    from aifx.benchmarking.runner import check_configuration
    from aifx.benchmarking.store import check_name, describe_noisy, noisy_results, open_store
    from aifx.commands.bench.report import show

    def more(noisy: list[Result], counts: dict[str, int]) -> Report:
        out.log(f"too noisy for a baseline: {describe_noisy(noisy)}: {describe_more(counts)}")
        return running.launch(counts)

    usual = LEAST_LAUNCHES if how.save else 1 if how.quick else 3
    launches, max_noise = how.launches or usual, read_share(how.max_noise, "--max-noise")
    if how.save:
        check_name(how.save)
        if launches < LEAST_LAUNCHES:
            least = f"--launches {LEAST_LAUNCHES}"
            raise UsageError(f"--save {how.save} requires {least} or more", f"--launches is {launches}", least)
    request = Request(suites=suites, quick=how.quick, options=options)
    check_configuration(request)
    running = Running(out, request)
    report = running.launch(dict.fromkeys(suites, launches))
    if how.save and how.launches is None:
        report = until_quiet(report, more, max_noise)
    out.document(report.document())
    show(out, report)
    with running.naming_the_copy():
        if how.output:
            write_report(report, how.output)
            out.log(f"written to {how.output}")
        if how.html:
            from aifx.benchmarking.page import report_page
            from aifx.core.pages import write_page

            write_page(report_page(report), how.html)
            out.log(f"written to {how.html}")
        report.raise_failure()
        if how.save:
            out.log(f"saved as {how.save}: {open_store().save(report, how.save, max_noise)}")
            if noisy := noisy_results(report, max_noise):
                out.log(f"too noisy for a gate, which will seldom judge them: {describe_noisy(noisy)}")
            out.log(f"next: aifx bench gate --baseline {how.save}")


def describe_more(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} more launches of {suite}" for suite, count in counts.items())


class Running:
    """A bench on its way. A copy of what was measured is left after each of its rounds, where `aifx bench show` finds
    it. `accept` is called with what it measures on before it measures anything; if it raises, that ends the bench."""

    def __init__(
        self, out: Output, request: Request, accept: Callable[[Fingerprint], None] = lambda found: None
    ) -> None:
        from aifx.benchmarking.results import Measured
        from aifx.benchmarking.runner import Launches
        from aifx.commands.bench.report import line_of

        def heard(event: Fingerprint | Measured) -> None:
            if isinstance(event, Measured):
                out.log(f"  {line_of(event)}")
            else:
                accept(event)

        self._launches = Launches(request, heard)
        self._kept = ""

    def launch(self, counts: Mapping[str, int]) -> Report:
        """Suites so many times more; what was measured until then, whole or not."""
        from aifx.benchmarking import measured_peaks
        from aifx.benchmarking.store import keep_last

        report = measured_peaks.keep(self._launches.run(counts))
        self._kept = keep_last(report) if report.results else ""
        return report

    @contextmanager
    def naming_the_copy(self) -> Iterator[None]:
        """An error in here also says where the copy is."""
        try:
            yield
        except AifxError as error:
            error.why = "\n".join(filter(None, (error.why, self._kept)))
            raise


def read_share(text: str, option: str) -> float:
    """Return "5%" or "0.05" as 0.05. Raises UsageError for 5, which means 5 % and not 500 %."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 < number < (1000 if text.endswith("%") else 1):
        hint = f"{option} {text}%" if text.isdigit() and number else f"{option} 5%"
        raise UsageError(f"{option} {text} is not a share", "a share is above 0, such as 5% or 0.05", hint)
    return number / 100 if text.endswith("%") else number
