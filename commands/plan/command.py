"""`aifx plan`: what a run needs before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.completion import complete_run
from aifx.commands.console.options import JsonOption, SetOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from aifx.planning.planner import PlanList

HardwareOption = Annotated[
    list[str] | None,
    typer.Option(
        "--hardware",
        metavar="NAME",
        help="Hardware to plan for: this, h100x8, v5e-256. By default this machine. Can be repeated.",
        show_default=False,
    ),
]
RunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Plan this run with its own settings and keep the plan in its directory.",
        autocompletion=complete_run,
    ),
]
FitOption = Annotated[
    bool, typer.Option("--fit", help="Search mesh, gradient accumulation and model.remat for settings that fit.")
]
PriceOption = Annotated[
    float | None, typer.Option("--price", min=0.0, metavar="AMOUNT", help="Price of a chip per hour.")
]
PowerOption = Annotated[
    float | None,
    typer.Option("--power", min=0.0, metavar="WATTS", help="Power of a chip. By default the vendor's board power."),
]
ListOption = Annotated[bool, typer.Option("--list", help="List the hardware that aifx knows.")]
CompileOption = Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the step, or only count.")]


def plan(
    hardware: HardwareOption = None,
    overrides: SetOption = None,
    run: RunOption = None,
    fit: FitOption = False,
    price: PriceOption = None,
    power: PowerOption = None,
    compile_: CompileOption = True,
    list_: ListOption = False,
    json: JsonOption = False,
) -> None:
    """Predict memory, time, energy and cost of a run before it starts.

    The hardware need not be here. aifx compiles the training step for it if a compiler is installed, and counts
    otherwise. Each number says where it comes from. Speed, time, energy and cost are intervals.

    Examples:
        aifx plan                                         this machine
        aifx plan --hardware h100x8 --price 2.5           8 H100 at 2.5 each per hour
        aifx plan --hardware h100x8 --hardware v5e-256    a table
        aifx plan --hardware v5e-256 --set mesh.fsdp=256  a mesh
        aifx plan --hardware v5e-256 --fit                mesh and settings that fit
        aifx plan --run main                              keep it for `aifx runs show`
    """
    with terminal(json) as out:
        if list_:
            _list(out)
            return
        from aifx.commands.plan.page import print_plan, print_table
        from aifx.core.project import find_project
        from aifx.kinds import load_config, read_config
        from aifx.planning.hardware import find_hardware
        from aifx.planning.planner import keep_plan, make_plans
        from aifx.planning.step_time import Assumptions

        names = hardware or ["this"]
        if run is not None and (overrides or fit or len(names) > 1):
            why = "the plan of a run has the settings that it was started with"
            raise UsageError(
                "--run can't be used with --set, --fit or several --hardware", why, f"aifx plan --run {run}"
            )
        project = find_project()
        directory = project.existing_run(run) if run is not None else None
        config = load_config(project, overrides or ()) if directory is None else read_config(directory.config, project)
        assets = directory.assets if directory is not None else None
        found = make_plans(
            project,
            config,
            [find_hardware(name, config.train.devices) for name in dict.fromkeys(names)],
            Assumptions(price, power),
            assets=assets,
            with_compiler=compile_,
            fit=fit,
        )
        if directory is not None:
            keep_plan(directory, found)
        out.document(found)
        if len(found.plans) == 1:
            print_plan(out, found.plans[0])
        else:
            print_table(out, found.plans)
        if not _any_fits(found):
            raise SystemExit(int(ExitCode.VERDICT))


def _list(out: Output) -> None:
    from aifx.planning.hardware import list_hardware

    found = list_hardware()
    out.document(found)
    out.table(
        ["name", "hardware", "chips"], [(one.name, one.chip, one.num_chips) for one in found.hardware], right=["chips"]
    )


def _any_fits(found: PlanList) -> bool:
    return any(getattr(one, "fits", False) for one in found.plans)
