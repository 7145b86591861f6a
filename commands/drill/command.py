"""`aifx drill`: faults on purpose, and whether the run recovers as promised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption, SetOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.limits import check_limits
from aifx.verbs.completion import complete_drill
from aifx.verbs.jobs import refuse_job

if TYPE_CHECKING:
    from aifx.verbs.drills import DrillReport, DrillResult

NamesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="DRILL...",
        help="kill, preempt, hang, nan, spike, disk-full, io-error, corrupt-ckpt, slow-step, loader-death, lost-host, "
        "or all of them.",
        autocompletion=complete_drill,
    ),
]
PhaseOption = Annotated[
    list[str] | None,
    typer.Option("--phase", metavar="PHASE", help="Only in this phase. Can be repeated.", show_default=False),
]
EveryOption = Annotated[
    int,
    typer.Option("--every", metavar="N", min=3, help="Steps between checkpoints; a run has four times as many steps."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Configuration to read instead of the project's aifx.toml.", show_default=False
    ),
]


def drill(
    names: NamesArgument,
    phase: PhaseOption = None,
    every: EveryOption = 6,
    set_: SetOption = None,
    config: ConfigOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the copy of the project with its runs.")] = False,
    json: JsonOption = False,
) -> None:
    """Inject faults into short runs of a copy of the project, and check that they recover as promised.

    Each drill runs once for each phase of a run in which it makes sense. The project's own runs are not touched.

    Examples:
        aifx drill kill
        aifx drill kill preempt --phase checkpoint
        aifx drill corrupt-ckpt --keep
        aifx drill all --json

    Exits 1 if a guarantee is broken or not shown, and 2 if a drill could not be run; `all` leaves such drills out.
    After Ctrl-C or SIGTERM, it prints the results so far.
    """
    with terminal(json) as out:
        refuse_job("drill")
        check_limits()
        from aifx.verbs.drills import drill

        report = drill(*names, phases=phase or (), every=every, settings=set_, config=config, keep=keep)
        out.result(report)
        _print(out, report)


def _print(out: Output, report: DrillReport) -> None:
    """The report for people: a row per fault, and a line per guarantee that is broken or not shown."""
    numbers = ["from", "lost", "most", "safe s", "next s"]
    columns = ["drill", "phase", *numbers, "state", "verdict"]
    out.table(columns, [_row(result) for result in report.results], right=numbers)
    for result in report.results:
        for reason in result.reasons:
            out.print(f"{result.drill}, {result.phase}, {result.verdict}: {reason}")
    out.print(f"\n{report.num_steps} steps, a checkpoint every {report.checkpoint_every}")
    out.print("from: the step of the checkpoint that the run resumed from; lost: steps done")
    out.print("again, and the most that were at risk; safe: seconds from the fault to a safe")
    out.print("state; next: to the next step; state: compared with the undisturbed run's at")
    out.print("the end, bit for bit")
    if report.folder is not None:
        out.print(f"kept in {report.folder}")


def _row(result: DrillResult) -> list[str | int | None]:
    measured, expected = result.measured, result.expected
    if measured is None or expected is None:
        return [result.drill, result.phase, *[None] * 6, result.verdict]
    seconds = [None if s is None else f"{s:.1f}" for s in (measured.safe_s, measured.next_step_s)]
    steps = [measured.resumed_from, measured.steps_lost, expected.max_steps_lost]
    return [result.drill, result.phase, *steps, *seconds, measured.state, result.verdict]
