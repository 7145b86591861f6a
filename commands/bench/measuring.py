"""Measuring for `aifx bench`: launches, what is kept of them, and where it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aifx.commands.bench.options import Measuring, read_share
from aifx.commands.console.output import Output
from aifx.commands.console.stopping import sigterm_as_ctrl_c
from aifx.core.errors import AifxError, UsageError

if TYPE_CHECKING:
    from aifx.benchmarking.fingerprint import Fingerprint
    from aifx.benchmarking.results import Report, Request, Result


@sigterm_as_ctrl_c()
def bench(out: Output, suites: list[str], options: dict[str, Any], how: Measuring) -> None:
    """Measure, show, and keep the results. Raises AifxError after that if the bench did not come to its end."""
    from aifx.benchmarking.estimate import LEAST_LAUNCHES
    from aifx.benchmarking.results import Request
    from aifx.benchmarking.runner import check_configuration
    from aifx.benchmarking.store import check_name, describe_noisy, noisy_results, open_store
    from aifx.commands.bench.report import show

    usual = LEAST_LAUNCHES if how.save else 1 if how.quick else 3
    launches, max_noise = how.launches or usual, read_share(how.max_noise, "--max-noise")
    if how.save:
        check_name(how.save)
        if launches < LEAST_LAUNCHES:
            raise UsageError(
                f"--save {how.save} requires --launches {LEAST_LAUNCHES} or more",
                f"--launches is {launches}",
                f"--launches {LEAST_LAUNCHES}",
            )
    request = Request(suites=suites, quick=how.quick, options=options)
    check_configuration(request)
    running = Running(out, request)
    report = running.launch(dict.fromkeys(suites, launches))
    if how.save and how.launches is None:
        report = _until_quiet(out, report, running, max_noise)
    out.document(report.document())
    show(out, report)
    with running.naming_the_copy():
        write(out, report, how)
        report.raise_failure()
        if how.save:
            out.log(f"saved as {how.save}: {open_store().save(report, how.save, max_noise)}")
            if noisy := noisy_results(report, max_noise):
                out.log(f"too noisy for a gate, which will seldom judge them: {describe_noisy(noisy)}")
            out.log(f"next: aifx bench gate --baseline {how.save}")


def _until_quiet(out: Output, report: Report, running: Running, max_noise: float) -> Report:
    """With more launches where it is too noisy to be a baseline."""
    from aifx.benchmarking.adaptive import until_quiet
    from aifx.benchmarking.store import describe_noisy

    def more(noisy: list[Result], counts: dict[str, int]) -> Report:
        out.log(f"too noisy for a baseline: {describe_noisy(noisy)}: {describe_more(counts)}")
        return running.launch(counts)

    return until_quiet(report, more, max_noise)


def describe_more(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} more launches of {suite}" for suite, count in counts.items())


class Running:
    """A bench on its way. A copy of what was measured is left after each of its rounds, where `aifx bench show` finds
    it."""

    def __init__(
        self, out: Output, request: Request, accept: Callable[[Fingerprint], None] = lambda found: None
    ) -> None:
        """Args:
        accept: called with what it measures on before it measures anything. If it raises, that ends the bench.
        """
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


def write(out: Output, report: Report, how: Measuring) -> None:
    """To the files that were asked for."""
    if how.output:
        from aifx.benchmarking.results import write_report

        write_report(report, how.output)
        out.log(f"written to {how.output}")
    if how.html:
        from aifx.benchmarking.page import report_page
        from aifx.core.pages import write_page

        write_page(report_page(report), how.html)
        out.log(f"written to {how.html}")
