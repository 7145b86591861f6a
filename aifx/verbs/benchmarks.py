"""Measuring machines, projects and servers, and comparing what was measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.benchmarking.compare import Compared, Comparison, Gated, side
from aifx.benchmarking.estimate import LEAST_LAUNCHES, MIDDLE, SIGNIFICANCE
from aifx.benchmarking.fingerprint import Fingerprint
from aifx.benchmarking.history import Baseline, BaselineList, History, main_result, result_history, select_results
from aifx.benchmarking.results import Measured, Report, Request, read_report, write_report
from aifx.benchmarking.results import Result as BenchResult
from aifx.benchmarking.store import (
    MAX_NOISE,
    Store,
    check_name,
    describe_noisy,
    is_in_project,
    keep_last,
    last_path,
    noisy_results,
    open_store,
    to_save,
)
from aifx.benchmarking.views import SPLIT_BY, Part, Point, Step, by_size, headlines, machine, shared_params, step_of
from aifx.core.errors import AifxError, ExitCode, UsageError, did_you_mean
from aifx.core.json_values import plain
from aifx.core.plurals import counted
from aifx.core.results import SCHEMA_VERSION, Result
from aifx.core.units import listed
from aifx.verbs.arguments import Settings, StrPath, overrides

if TYPE_CHECKING:
    from aifx.benchmarking.serve.load import LoadOptions

log = logging.getLogger(__name__)

QUICK_REQUESTS = 16

OnMeasured = Callable[[Measured], None]
"""Called with each result of a launch when it is there."""

OnReport = Callable[[Report], None]
"""Called with the report when it has been measured, before it is written anywhere."""

OnFault = Callable[[AifxError], None]
"""Called with the error of each saved report that cannot be read, which is left out."""


def bench(
    *suites: str,
    project: StrPath = ".",
    quick: bool = False,
    launches: int | None = None,
    settings: Settings = None,
    ops: Sequence[str] = (),
    cases: Sequence[str] = (),
    dtype: str | None = None,
    save: str | None = None,
    max_noise: float = MAX_NOISE,
    output: StrPath | None = None,
    html: StrPath | None = None,
    on_measured: OnMeasured = lambda measured: None,
    on_report: OnReport = lambda report: None,
) -> Report:
    """Measure this machine or a project, and return a report with confidence intervals.

    Args:
        suites: "hardware", "kernels", "train", "data", "checkpoint", "startup"; by default all of them, or those that
            need no project outside of one. `aifx.bench_serve` measures a server.
        project: a folder in the project, for the suites that need one.
        quick: measure fewer sizes for a shorter time.
        launches: processes per suite; by default 3, or 1 with `quick`, or 5 with `save`.
        settings: values over those of `aifx.toml`, by key.
        ops: of the suite "kernels", measure only these.
        cases: of the suite "kernels", measure only these.
        dtype: of the suite "kernels"; by default bfloat16 on accelerators, float32 on CPUs.
        save: name of the baseline to save the report as.
        max_noise: largest noise of a result of a baseline, as a share of its time.
        output: also write the report to this file, as JSON.
        html: also write the report to this file, as a page with plots.
        on_measured: called with each result of a launch when it is there.
        on_report: called with the report before it is written and saved.

    Raises AifxError after that if a suite fails.

    Example:
        >>> aifx.bench("data", quick=True, output="data.json").find("data.read") is not None
        True
    """
    from aifx.benchmarking.suites import SUITES

    folder = Path(project)
    for suite in suites:
        if suite not in SUITES or SUITES[suite].needs_target:
            able = ", ".join(name for name, one in SUITES.items() if not one.needs_target)
            raise UsageError(f"there is no suite {suite!r}", f"one of: {able}", "aifx bench --help")
    options: dict[str, Any] = {}
    if not suites or settings is not None or any(SUITES[suite].needs_project for suite in suites):
        options["set"] = overrides(settings)
    if ops or cases or dtype or suites == ("kernels",):
        options |= {"ops": list(ops), "cases": list(cases), "dtype": dtype}
    request = Request(suites=list(suites) or _all_suites(folder), quick=quick, options=options)
    return _measure_and_keep(
        request, folder, launches, save, max_noise, _path(output), _path(html), on_measured, on_report
    )


def bench_serve(
    url: str | None = None,
    *,
    run: str | None = None,
    settings: Settings = None,
    model: str | None = None,
    chat: bool = False,
    concurrency: Sequence[float] = (),
    rate: Sequence[float] = (),
    trace: StrPath | None = None,
    requests: int | None = None,
    warmup: int | None = None,
    prompt_tokens: str = "128",
    output_tokens: str = "64",
    shared_prefix: int = 0,
    slo: str | None = None,
    price: float | None = None,
    seed: int = 0,
    timeout_s: float = 600.0,
    key_variable: str = "AIFX_SERVE__API_KEY",
    project: StrPath = ".",
    quick: bool = False,
    launches: int | None = None,
    save: str | None = None,
    max_noise: float = MAX_NOISE,
    output: StrPath | None = None,
    html: StrPath | None = None,
    on_measured: OnMeasured = lambda measured: None,
    on_report: OnReport = lambda report: None,
) -> Report:
    """Measure a server: latencies, throughput and goodput under a load.

    Args:
        url: of a server with OpenAI's API.
        run: name of a run to serve instead: each launch starts its own server.
        settings: with `run`, values over those of its configuration, by key.
        model: to ask; by default the server's first.
        chat: ask /v1/chat/completions instead of /v1/completions.
        concurrency: numbers of clients that each wait for their answer; by default 1.
        rate: requests per second, which arrive whatever the server does.
        trace: file with lengths and times, of Mooncake or Azure.
        requests: per load; by default 64, or the whole trace.
        warmup: requests before that; by default one per client.
        prompt_tokens: length of the prompts: "N", "LOW..HIGH" or "lognormal:MEDIAN,SIGMA".
        output_tokens: length of the answers, in the same form.
        shared_prefix: tokens at the start that all prompts share.
        slo: limits for goodput, such as "ttft=500ms,tpot=50ms".
        price: of the server, per hour.
        seed: of the lengths and arrival times.
        timeout_s: most time for one answer.
        key_variable: environment variable with the server's key.
        project: a folder in the project of the run.
        quick: ask fewer requests.
        launches: processes that measure; by default 3, or 1 with `quick`, or 5 with `save`.
        save: name of the baseline to save the report as.
        max_noise: largest noise of a result of a baseline, as a share of its time.
        output: also write the report to this file, as JSON.
        html: also write the report to this file, as a page with plots.
        on_measured: called with each result of a launch when it is there.
        on_report: called with the report before it is written and saved.

    Raises AifxError after that if the server cannot be measured.

    Example:
        >>> aifx.bench_serve("no-url")
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.benchmarking.serve.load import LoadOptions

    load = LoadOptions(
        url=url,
        run=run,
        set=tuple(overrides(settings)),
        model=model,
        chat=chat,
        concurrency=tuple(int(number) for number in concurrency),
        rate=tuple(rate),
        trace=None if trace is None else str(trace),
        requests=QUICK_REQUESTS if quick and requests is None else requests,
        warmup=warmup,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        shared_prefix=shared_prefix,
        slo=slo,
        price=price,
        seed=seed,
        timeout_s=timeout_s,
        key_variable=key_variable,
    )
    folder = Path(project)
    load.check()
    if load.run is not None:
        from aifx.core.project import find_project

        find_project(folder).existing_run(load.run)
    options = load.model_dump(mode="json", exclude_defaults=True)
    request = Request(suites=["serve"], quick=quick, options=options)
    return _measure_and_keep(
        request, folder, launches, save, max_noise, _path(output), _path(html), on_measured, on_report
    )


def _path(given: StrPath | None) -> Path | None:
    return None if given is None else Path(given)


def _all_suites(folder: Path) -> list[str]:
    from aifx.benchmarking.suites import SUITES

    has_project = is_in_project(folder)
    if not has_project:
        log.info("not in a project: training, data, checkpoints and startup are not measured")
    able = [suite for suite in SUITES.values() if has_project or not suite.needs_project]
    return [suite.name for suite in able if not suite.needs_target]


def _measure_and_keep(
    request: Request,
    folder: Path,
    launches: int | None,
    save: str | None,
    max_noise: float,
    output: Path | None,
    html: Path | None,
    on_measured: OnMeasured,
    on_report: OnReport,
) -> Report:
    """Measure, report, and keep the results. Raises AifxError after that if the bench did not come to its end."""
    from aifx.benchmarking.adaptive import until_quiet
    from aifx.benchmarking.runner import check_configuration

    def more(noisy: list[BenchResult], counts: dict[str, int]) -> Report:
        log.info(f"too noisy for a baseline: {describe_noisy(noisy)}: {_describe_more(counts)}")
        return measurement.launch(counts)

    usual = LEAST_LAUNCHES if save else 1 if request.quick else 3
    if save:
        check_name(save)
        if launches is not None and launches < LEAST_LAUNCHES:
            least = f"--launches {LEAST_LAUNCHES}"
            raise UsageError(f"--save {save} requires {least} or more", f"--launches is {launches}", least)
    check_configuration(request, folder)
    measurement = Measurement(request, folder, on_measured)
    report = measurement.launch(dict.fromkeys(request.suites, launches or usual))
    if save and launches is None:
        report = until_quiet(report, more, max_noise)
    on_report(report)
    with measurement.naming_the_copy():
        if output is not None:
            write_report(report, output)
            log.info(f"written to {output}")
        if html is not None:
            from aifx.benchmarking.page import report_page
            from aifx.core.pages import write_page

            write_page(report_page(report), html)
            log.info(f"written to {html}")
        report.raise_failure()
        if save:
            log.info(f"saved as {save}: {open_store(folder).save(report, save, max_noise)}")
            if noisy := noisy_results(report, max_noise):
                log.info(f"too noisy for a gate, which will seldom judge them: {describe_noisy(noisy)}")
            log.info(f"next: aifx bench gate --baseline {save}")
    return report


class Measurement:
    """A bench on its way. A copy of what was measured is left after each of its rounds, where `aifx bench show` finds
    it. `accept` is called with what it measures on before it measures anything; if it raises, that ends the bench."""

    def __init__(
        self,
        request: Request,
        folder: Path,
        on_measured: OnMeasured,
        accept: Callable[[Fingerprint], None] = lambda found: None,
    ) -> None:
        from aifx.benchmarking.runner import Launches

        def take(event: Fingerprint | Measured) -> None:
            if isinstance(event, Measured):
                on_measured(event)
            else:
                accept(event)

        self._launches = Launches(request, take, folder)
        self._kept = ""

    def launch(self, counts: Mapping[str, int]) -> Report:
        """Launch suites so many times more. Return what was measured until then, whole or not."""
        from aifx.benchmarking import measured_peaks

        report = measured_peaks.keep(self._launches.run(counts))
        self._kept = keep_last(report) if report.results else ""
        return report

    @contextmanager
    def naming_the_copy(self) -> Iterator[None]:
        """Add to an error in the block where the copy is."""
        try:
            yield
        except AifxError as error:
            error.why = "\n".join(filter(None, (error.why, self._kept)))
            raise


def _describe_more(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} more launches of {suite}" for suite, count in counts.items())


def bench_show(report: str | None = None, *, project: StrPath = ".") -> Report:
    """Read a saved report, or the last one.

    Args:
        report: "NAME", "NAME@COMMIT" or a file; by default the last one that was measured here.
        project: a folder in the project whose baselines are meant.

    Example:
        >>> aifx.bench_show("data.json").request.suites
        ['data']
    """
    return open_store(Path(project)).find(report) if report else read_report(last_path())


@dataclass(frozen=True)
class ComparedPair(Result):
    """Two reports and their comparison; `a` and `b` are what they were asked for by."""

    a: str
    b: str
    before: Report
    after: Report
    compared: Compared

    def document(self) -> dict[str, Any]:
        document = self.compared.document(side(self.before, self.a), side(self.after, self.b))
        return {"schema_version": SCHEMA_VERSION, **plain(document)}


def bench_compare(a: str, b: str, *, only: Sequence[str] = (), project: StrPath = ".") -> ComparedPair:
    """Compare the results of two reports: which are slower or faster in the second.

    Args:
        a: the first report: "NAME", "NAME@COMMIT" or a file.
        b: the second report.
        only: names of results, such as "train" or "train.step".
        project: a folder in the project whose baselines are meant.

    Example:
        >>> aifx.bench_compare("data.json", "data.json").compared.only_after
        []
    """
    from aifx.benchmarking.compare import compare

    store = open_store(Path(project))
    before, after = store.find(a), store.find(b)
    _check_comparable(a, b, before.fingerprint.obstacles(after.fingerprint), Path(project))
    compared = compare(before, after, _known_names(only, b, before, after))
    if not compared.results:
        raise UsageError(f"{a} and {b} have no result in common", compared.one_sided, f"aifx bench show {a}")
    return ComparedPair(a, b, before, after, compared)


@dataclass(frozen=True)
class GateVerdict(Result):
    """The verdict of a gate: bad if a result has regressed.

    Attributes:
        baseline: what the baseline was asked for by.
        source: the file of the report that was compared with it; "now" if it was measured.
    """

    baseline: str
    source: str
    before: Report
    after: Report
    gated: Gated

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.gated.regressed else ExitCode.OK

    def document(self) -> dict[str, Any]:
        document = self.gated.document(side(self.before, self.baseline), side(self.after, self.source))
        return {"schema_version": SCHEMA_VERSION, **plain(document)}


def bench_gate(
    baseline: str,
    *,
    max_regression: float = 0.05,
    max_launches: int = 20,
    only: Sequence[str] = (),
    results: StrPath | None = None,
    output: StrPath | None = None,
    project: StrPath = ".",
    on_measured: OnMeasured = lambda measured: None,
) -> GateVerdict:
    """Measure again what a baseline measured. The verdict is bad if a result is slower.

    A result has regressed if its slowdown exceeds both `max_regression` and the noise.

    Args:
        baseline: "NAME", "NAME@COMMIT" or a file.
        max_regression: largest slowdown of a result, as a share of its time.
        max_launches: most launches per suite.
        only: names of results, such as "train" or "train.step".
        results: a report to compare with the baseline instead of measuring.
        output: also write the report to this file, as JSON.
        project: a folder in the project.
        on_measured: called with each result of a launch when it is there.

    Raises UsageError if the reports cannot be compared, or cannot decide.

    Example:
        >>> aifx.bench_gate("data.json")
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.benchmarking.compare import gate

    kept: AbstractContextManager[None] = nullcontext()
    before = open_store(Path(project)).find(baseline)
    names = _known_names(only, baseline, before)
    if results is not None:
        after, source, option = read_report(Path(results)), str(results), "--launches"
        _check_judgeable(baseline, source, before, after, Path(project))
        gated = gate(before, after, max_regression, names)
    else:
        measurement, after, gated = _measure_for_gate(
            baseline, before, max_regression, names, max_launches, Path(project), on_measured
        )
        kept, source, option = measurement.naming_the_copy(), "now", "--max-launches"
    with kept:
        if output is not None:
            write_report(after, Path(output))
        after.raise_failure()
        _check_decided(gated, option)
    return GateVerdict(baseline, source, before, after, gated)


def _measure_for_gate(
    baseline: str,
    before: Report,
    max_regression: float,
    names: tuple[str, ...],
    most: int,
    folder: Path,
    on_measured: OnMeasured,
) -> tuple[Measurement, Report, Gated]:
    """Measure what the baseline's request asks for, each suite as often as then.

    What may be slower is launched until that can be decided. Raises UsageError before that if some result could not be
    compared with the baseline.
    """
    from aifx.benchmarking.adaptive import until_decided
    from aifx.benchmarking.compare import chosen
    from aifx.benchmarking.runner import check_configuration

    def accept(found: Fingerprint) -> None:
        _check_comparable(baseline, "this machine", before.fingerprint.obstacles(found), folder)

    def more(inconclusive: list[BenchResult], counts: dict[str, int]) -> Report:
        titles = listed([result.title for result in inconclusive])
        log.info(f"{titles} may be slower: {_describe_more(counts)} may decide")
        return measurement.launch(counts)

    wanted = chosen(before, names).values()
    for result in wanted:
        if (count := len(result.samples_s)) < LEAST_LAUNCHES:
            what = f"{baseline} is no baseline: {result.title} has {counted(count, 'launch', 'es')}"
            raise UsageError(what, f"{LEAST_LAUNCHES} are the least", f"{to_save('NAME', folder)} keeps one")
    request = before.request
    if names:
        suites = {result.suite for result in wanted}
        request = request.model_copy(update={"suites": [suite for suite in request.suites if suite in suites]})
    check_configuration(request, folder)
    counts = {suite: min(max(before.launches_of(suite), LEAST_LAUNCHES), most) for suite in request.suites}
    measurement = Measurement(request, folder, on_measured, accept)
    return measurement, *until_decided(before, measurement.launch(counts), max_regression, names, more, most)


def _known_names(only: Sequence[str], source: str, *reports: Report) -> tuple[str, ...]:
    """Return names of results, each of which one of the reports has.

    Raises UsageError for one that none of them has, with a hint to the source of the last report.
    """
    known = {result.name for report in reports for result in report.results}
    known |= {name.partition(".")[0] for name in known}
    for name in only:
        if name not in known:
            raise UsageError(f"no result {name!r}", did_you_mean(name, known), f"aifx bench show {source}")
    return tuple(only)


def _check_comparable(a: str, b: str, obstacles: list[str], folder: Path) -> None:
    """Raise UsageError if there is an obstacle to comparing b with a."""
    if obstacles:
        what, hint = "were measured on different hardware and do not compare", "keeps a baseline of this machine"
        raise UsageError(f"{a} and {b} {what}", "; ".join(obstacles), f"{to_save('NAME', folder)} {hint}")


def _check_judgeable(baseline: str, source: str, before: Report, after: Report, folder: Path) -> None:
    """Raise UsageError if the two were not measured alike, or on other hardware."""
    from aifx.benchmarking.compare import asked

    if after.failure:
        why = f"the bench did not come to its end: {after.failure.what}"
        raise UsageError(f"{source} cannot be judged", why, "measure again")
    _check_comparable(baseline, source, before.fingerprint.obstacles(after.fingerprint), folder)
    if differences := asked(before.request, after.request):
        what = f"{baseline} and {source} do not compare: other things were asked for"
        hint = f"aifx bench gate --baseline {baseline} measures what it has to"
        raise UsageError(what, "; ".join(differences), hint)


def _check_decided(gated: Gated, option: str) -> None:
    """Raise UsageError if a gate can say neither yes nor no; `option` is that which asks for more launches."""
    compared = gated.compared
    if not compared.results:
        what = "the baseline and what was measured have no result in common"
        raise UsageError(what, compared.one_sided, "aifx bench show lists what was measured")
    for found in compared.results:
        if min(found.launches) < LEAST_LAUNCHES:
            hint = f"aifx bench ... --launches {LEAST_LAUNCHES}"
            raise UsageError(f"{found.after.title} cannot be judged", found.why, hint)
    if gated.undecided and not gated.regressed:
        undecided = listed([found.after.title for found in gated.undecided])
        raise UsageError(
            f"{undecided}: slower by more than {gated.max_regression:.1%}, or by chance",
            f"among {len(compared.results)} results, some seem so in {max(gated.undecided[0].launches)} launches",
            f"measure with {option} {gated.launches}, or gate what matters: --only {gated.undecided[0].after.name}",
        )


@dataclass(frozen=True)
class SavedBaselines(Result):
    """The saved baselines.

    Attributes:
        folder: that holds them.
        baselines: by name.
        newest: the newest report of each.
        to_save: the command that saves one.
    """

    folder: str
    baselines: tuple[Baseline, ...]
    newest: tuple[Report, ...]
    to_save: str

    def document(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **plain(BaselineList(self.folder, list(self.baselines)))}


def bench_ls(*, project: StrPath = ".", on_fault: OnFault = lambda error: None) -> SavedBaselines:
    """List the saved baselines.

    Args:
        project: a folder in the project whose baselines are meant.
        on_fault: called with the error of each saved report that cannot be read, which is left out.

    Example:
        >>> aifx.bench_ls().baselines
        ()
    """
    store = open_store(Path(project))
    baselines, newest = [], []
    for name in store.names():
        if reports := _read_reports(store, name, on_fault):
            last = reports[-1]
            commit, suites = last.fingerprint.commit, last.request.suites
            baselines.append(Baseline(name, len(reports), last.time, commit, last.launches, suites))
            newest.append(last)
    return SavedBaselines(str(store.folder), tuple(baselines), tuple(newest), to_save("main", Path(project)))


@dataclass(frozen=True)
class BaselineHistory(Result):
    """The saved reports of a baseline, the oldest first, and how its results moved.

    Attributes:
        main: the result that represents the others.
    """

    reports: tuple[Report, ...]
    history: History
    main: BenchResult

    def document(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **plain(self.history)}


def bench_history(
    name: str,
    *,
    result: str | None = None,
    html: StrPath | None = None,
    project: StrPath = ".",
    on_fault: OnFault = lambda error: None,
) -> BaselineHistory:
    """Read how the results of a baseline moved, commit by commit.

    Args:
        name: of the baseline.
        result: only this result, as tables name it.
        html: write all results to this file, as a page with plots.
        project: a folder in the project whose baselines are meant.
        on_fault: called with the error of each saved report that cannot be read, which is left out.

    Example:
        >>> aifx.bench_history("main")
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    reports = _read_reports(open_store(Path(project)), name, on_fault)
    if not reports:
        raise UsageError(f"no report of {name} can be read", "each is damaged", to_save(name, Path(project)))
    results = select_results(name, reports, result)
    if html is not None:
        from aifx.benchmarking.page import history_page
        from aifx.core.pages import write_page

        write_page(history_page(name, reports), Path(html))
        log.info(f"written to {html}")
    history = History(name, [result_history(reports, one) for one in results])
    return BaselineHistory(tuple(reports), history, main_result(results))


def _read_reports(store: Store, name: str, on_fault: OnFault) -> list[Report]:
    """Read the reports of a name, the oldest first, and leave out those that cannot be read."""
    found = []
    for path in store.history(name):
        try:
            found.append(read_report(path))
        except AifxError as error:
            on_fault(error)
    return found
