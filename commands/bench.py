"""`aifx bench`: how fast, of what the hardware can do, and whether it is slower than it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.bench_options import Measuring, measuring, read_share
from aifx.commands.options import SetOption
from aifx.commands.terminal import Output, terminal
from aifx.errors import AifxError, ExitCode

if TYPE_CHECKING:
    from aifx.bench.results import Report

app = typer.Typer(
    help="""Measure this machine and this project, and hold what was measured against a baseline.

    Examples:
        aifx bench all --quick                  the acceptance of a node in two minutes
        aifx bench train                        the project's step, part by part
        aifx bench train --save main            keep it as a baseline
        aifx bench gate --baseline main --max-regression 5%
    """
)


@app.command()
@measuring
def hardware(*, how: Measuring) -> None:
    """Measure what this machine's silicon reaches: products, memory, copies, collectives, dispatch.

    The ceilings that it finds are kept, and stand beside the data sheet's from then on.

    Examples:
        aifx bench hardware
        aifx bench hardware --quick --html hardware.html
    """
    with terminal(how.json) as out:
        bench(out, ["hardware"], {}, how)


@app.command()
@measuring
def kernels(
    op: Annotated[
        list[str] | None, typer.Option("--op", metavar="OP", help="Only this op. Can be repeated.", show_default=False)
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="Only this case of it.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Else bfloat16 on accelerators, float32 on a CPU.", show_default=False),
    ] = None,
    *,
    how: Measuring,
) -> None:
    """Measure each op of jax_kernels in each of its forms, against jax.nn and tokamax where they can say the same.

    Examples:
        aifx bench kernels --op attention
        aifx bench kernels --quick
    """
    options = {"ops": op or [], "cases": case or [], "dtype": dtype}
    with terminal(how.json) as out:
        bench(out, ["kernels"], options, how)


@app.command()
@measuring
def train(
    set_: SetOption = None,
    *,
    how: Measuring,
) -> None:
    """Measure the project's training step: forward, backward, optimizer, data, dispatch; memory, energy, growth.

    Examples:
        aifx bench train
        aifx bench train --set train.global_batch_size=16
        aifx bench train --save main
    """
    with terminal(how.json) as out:
        bench(out, ["train"], {"set": set_ or []}, how)


@app.command()
@measuring
def data(
    set_: SetOption = None,
    *,
    how: Measuring,
) -> None:
    """Measure how fast the project's batches are made, and whether training would wait for them.

    Examples:
        aifx bench data
    """
    with terminal(how.json) as out:
        bench(out, ["data"], {"set": set_ or []}, how)


@app.command()
@measuring
def checkpoint(
    set_: SetOption = None,
    *,
    how: Measuring,
) -> None:
    """Measure how long a checkpoint stalls training, and its saving and restoring against the disk's own rate.

    Examples:
        aifx bench checkpoint
    """
    with terminal(how.json) as out:
        bench(out, ["checkpoint"], {"set": set_ or []}, how)


@app.command()
@measuring
def startup(
    set_: SetOption = None,
    *,
    how: Measuring,
) -> None:
    """Measure the time from the command to the first step, with and without compiled programs at hand.

    Examples:
        aifx bench startup
    """
    with terminal(how.json) as out:
        bench(out, ["startup"], {"set": set_ or []}, how)


@app.command("all")
@measuring
def all_(
    set_: SetOption = None,
    *,
    how: Measuring,
) -> None:
    """Measure all of it: one report, for the acceptance of a node. Outside of a project: what needs none.

    Examples:
        aifx bench all --quick --html node.html
    """
    with terminal(how.json) as out:
        from aifx.bench.suites import SUITES

        has_project = _in_project()
        suites = [suite.name for suite in SUITES.values() if has_project or not suite.needs_project]
        if not has_project:
            out.say("not in a project: its training, data, checkpoints and start are left out")
        bench(out, suites, {"set": set_ or []}, how)


def bench(out: Output, suites: list[str], options: dict[str, Any], how: Measuring) -> None:
    """Measure, tell, keep. Raises AifxError for a bench that did not come to its end, once all that is done."""
    from aifx.bench.results import Request
    from aifx.bench.store import open_store
    from aifx.commands.bench_report import show

    max_noise = read_share(how.max_noise, "--max-noise")
    if any(_needs_project(suite) for suite in suites):
        from aifx.config import load_config
        from aifx.project import find_project

        load_config(find_project(), options.get("set") or ())  # what is wrong with it is told before anything starts
    report = measure(out, Request(suites=suites, quick=how.quick, options=options), how.launches, save=bool(how.save))
    out.document(report.document())
    show(out, report)
    if how.output:
        from aifx.bench.results import write_report

        write_report(report, how.output)
        out.say(f"written to {how.output}")
    if how.html:
        from aifx.bench.page import report_page
        from aifx.pages import write_page

        write_page(report_page(report), how.html)
        out.say(f"written to {how.html}")
    _end_if_failed(report)
    if how.save:
        path = open_store().save(report, how.save, max_noise)
        out.say(f"saved as {how.save}: {path}")


def measure(out: Output, request: Any, launches: int | None, *, save: bool) -> Report:
    """What was measured, whole or not; a copy is left where `aifx bench show` finds the last one."""
    from aifx.bench.estimate import LEAST_LAUNCHES
    from aifx.bench.launches import Launches
    from aifx.bench.results import write_report
    from aifx.bench.store import last_path
    from aifx.commands.bench_report import line_of

    usual = LEAST_LAUNCHES if save else 1 if request.quick else 3
    running = Launches(request, launches or usual, out.say, lambda found: out.say(f"  {line_of(found)}"))
    report = running.run()
    try:
        write_report(report, last_path())
    except AifxError as error:  # it is told on stdout all the same
        out.say(f"{error.what}: {error.why}")
    return report


def _end_if_failed(report: Report) -> None:
    from aifx.bench.store import last_path

    if report.failure is not None:
        failure = report.failure
        kept = f"{len(report.results)} results until then are kept: aifx bench show ({last_path()})"
        why = "\n".join(filter(None, (failure.why, kept)))
        raise AifxError(failure.what, why, failure.hint, exit_code=ExitCode(failure.exit_code))


def _in_project() -> bool:
    from aifx.project import find_project

    try:
        find_project()
    except AifxError:
        return False
    return True


def _needs_project(suite: str) -> bool:
    from aifx.bench.suites import SUITES

    return SUITES[suite].needs_project


from aifx.commands import bench_compare  # noqa: E402, F401 (registers its commands)
