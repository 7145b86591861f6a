"""`aifx plan`: what a run needs before it starts."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption, SetOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.verbs.completion import complete_run

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
        from aifx.verbs.planning import plan

        found = plan(
            *(hardware or ()),
            settings=overrides,
            run=run,
            fit=fit,
            price=price,
            power=power,
            compile=compile_,
        )
        out.result(found)
        if len(found.plans) == 1:
            print_plan(out, found.plans[0])
        else:
            print_table(out, found.plans)


def _list(out: Output) -> None:
    from aifx.verbs.planning import plan_hardware

    found = plan_hardware()
    out.result(found)
    out.table(
        ["name", "hardware", "chips"], [(one.name, one.chip, one.num_chips) for one in found.hardware], right=["chips"]
    )
