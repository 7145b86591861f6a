"""`aifx bench`: measure hardware, kernels and a project, and save baselines."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.bench import compare, gate, history, serving
from aifx.commands.bench.measuring import Measuring, bench
from aifx.commands.console.options import SetOption, option_group
from aifx.commands.console.terminal import terminal

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
        typer.Option("--op", metavar="OP", help="Measure only this op. Can be repeated."),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="NAME", help="Measure only this case. Can be repeated."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="DTYPE", help="Type to measure in. By default bfloat16 on accelerators, float32 on CPUs."
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
    with terminal(how.json) as out:
        bench(out, ["kernels"], {"ops": op or [], "cases": case or [], "dtype": dtype}, how)


def _add_project_suite(name: str, help: str) -> None:
    @app.command(name, help=help)
    @option_group
    def suite(set_: SetOption = None, *, how: Measuring) -> None:
        with terminal(how.json) as out:
            bench(out, [name], {"set": set_ or []}, how)


_add_project_suite(
    "train",
    """Measure the project's training step and its parts, memory, energy and scaling.

    Examples:
        aifx bench train
        aifx bench train --set train.global_batch_size=16
        aifx bench train --save main
    """,
)
_add_project_suite(
    "data",
    """Measure how fast the project's batches are ready, and whether training waits for them.

    Examples:
        aifx bench data
    """,
)
_add_project_suite(
    "checkpoint",
    """Measure how long a checkpoint stalls training, and how saving and restoring compare with the disk's rate.

    Examples:
        aifx bench checkpoint
    """,
)
_add_project_suite(
    "startup",
    """Measure the time from the command to the first step, with and without caches.

    Examples:
        aifx bench startup
    """,
)

app.command()(option_group(serving.serve))


@app.command("all")
@option_group
def all_(set_: SetOption = None, *, how: Measuring) -> None:
    """Run all suites and write one report. Outside a project, run only suites that need no project.

    Examples:
        aifx bench all --quick --html node.html
    """
    with terminal(how.json) as out:
        from aifx.benchmarking.store import is_in_project
        from aifx.benchmarking.suites import SUITES

        has_project = is_in_project()
        able = [suite for suite in SUITES.values() if has_project or not suite.needs_project]
        suites = [suite.name for suite in able if not suite.needs_target]
        if not has_project:
            out.log("not in a project: training, data, checkpoints and startup are not measured")
        bench(out, suites, {"set": set_ or []}, how)


# After the suites: the help lists commands in this order.
for command in (compare.show, compare.compare, gate.gate, history.ls, history.history):
    app.command()(command)
