"""`aifx bench`: measure hardware, kernels and a project, and save baselines."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.bench import compare, gate, history
from aifx.commands.bench.measuring import bench
from aifx.commands.bench.options import Measuring
from aifx.commands.console.options import SetOption, option_group
from aifx.commands.console.terminal import terminal
from aifx.core.errors import AifxError

app = typer.Typer(
    help="""Measure this machine and this project, and compare the results with a baseline.

    Examples:
        aifx bench all --quick                  measure everything in two minutes
        aifx bench train                        measure the project's training step
        aifx bench train --save main            save the results as baseline main
        aifx bench gate --baseline main --max-regression 5%
    """
)


@app.command()
@option_group
def hardware(*, how: Measuring) -> None:
    """Measure the rates that this machine reaches: products, memory, copies, collectives, dispatch.

    aifx keeps the best rates, and other commands compare with them.

    Examples:
        aifx bench hardware
        aifx bench hardware --quick --html hardware.html
    """
    with terminal(how.json) as out:
        bench(out, ["hardware"], {}, how)


@app.command()
@option_group
def kernels(
    op: Annotated[
        list[str] | None,
        typer.Option("--op", metavar="OP", help="Measure only this op. Can be repeated.", show_default=False),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="NAME", help="Measure only this case. Can be repeated.", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Type to measure in. By default bfloat16 on accelerators, float32 on CPUs.",
            show_default=False,
        ),
    ] = None,
    *,
    how: Measuring,
) -> None:
    """Measure each implementation of each op of jax_kernels, compared with jax.nn and tokamax.

    Examples:
        aifx bench kernels --op attention
        aifx bench kernels --quick
    """
    options = {"ops": op or [], "cases": case or [], "dtype": dtype}
    with terminal(how.json) as out:
        bench(out, ["kernels"], options, how)


@app.command()
@option_group
def train(
    set_: SetOption = None,
    *,
    how: Measuring,
) -> None:
    """Measure the project's training step and its parts, memory, energy and scaling.

    Examples:
        aifx bench train
        aifx bench train --set train.global_batch_size=16
        aifx bench train --save main
    """
    with terminal(how.json) as out:
        bench(out, ["train"], {"set": set_ or []}, how)


@app.command()
@option_group
def data(
    set_: SetOption = None,
    *,
    how: Measuring,
) -> None:
    """Measure how fast the project's batches are ready, and whether training waits for them.

    Examples:
        aifx bench data
    """
    with terminal(how.json) as out:
        bench(out, ["data"], {"set": set_ or []}, how)


@app.command()
@option_group
def checkpoint(
    set_: SetOption = None,
    *,
    how: Measuring,
) -> None:
    """Measure how long a checkpoint stalls training, and how saving and restoring compare with the disk's rate.

    Examples:
        aifx bench checkpoint
    """
    with terminal(how.json) as out:
        bench(out, ["checkpoint"], {"set": set_ or []}, how)


@app.command()
@option_group
def startup(
    set_: SetOption = None,
    *,
    how: Measuring,
) -> None:
    """Measure the time from the command to the first step, with and without caches.

    Examples:
        aifx bench startup
    """
    with terminal(how.json) as out:
        bench(out, ["startup"], {"set": set_ or []}, how)


@app.command("all")
@option_group
def all_(
    set_: SetOption = None,
    *,
    how: Measuring,
) -> None:
    """Run all suites and write one report. Outside a project, run only suites that need no project.

    Examples:
        aifx bench all --quick --html node.html
    """
    with terminal(how.json) as out:
        from aifx.benchmarking.suites import SUITES

        has_project = _in_project()
        suites = [suite.name for suite in SUITES.values() if has_project or not suite.needs_project]
        if not has_project:
            out.log("not in a project: training, data, checkpoints and startup are not measured")
        bench(out, suites, {"set": set_ or []}, how)


def _in_project() -> bool:
    from aifx.core.project import find_project

    try:
        find_project()
    except AifxError:
        return False
    return True


# After the suites: the help lists commands in this order.
app.command()(compare.show)
app.command()(compare.compare)
app.command()(gate.gate)
app.command()(history.ls)
app.command()(history.history)
