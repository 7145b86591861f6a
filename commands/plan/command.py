"""`aifx plan`: memory, time, energy and cost of a run before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.format import literal
from aifx.commands.console.options import JsonOption, SetOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.json_files import readable_bytes
from aifx.verbs.completion import complete_run

if TYPE_CHECKING:
    from aifx.verbs.planning import Figure, Memory, Plan, PlanFailure


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


def print_plan(out: Output, plan: Plan | PlanFailure) -> None:
    """One plan: memory, step, run and disk, each number with its source."""
    from aifx.verbs.planning import Plan

    assert isinstance(plan, Plan)
    how = f"compiled in {plan.compile_s:.0f} s" if plan.compile_s is not None else f"not compiled: {plan.not_compiled}"
    accumulated = f" in {plan.gradient_accumulation} micro-batches" if plan.gradient_accumulation > 1 else ""
    out.print(f"{plan.hardware}: {plan.num_devices} x {plan.device_kind}; {how}")
    out.print(f"{plan.num_parameters:,} parameters, {plan.dtype}, batch {plan.global_batch_size}{accumulated}")
    out.print(plan.layout)
    out.print("")
    rows = [(name.replace("_", " "), figure) for name, figure in memory_parts(plan.memory)]
    _print_figures(out, "memory per device", [(name, size(figure.value), figure) for name, figure in rows])
    excess = -plan.memory.headroom.value
    by = f"{size(excess)} too much" if excess > 0 else "the compiler finds too little memory"
    out.print("fits" if plan.fits else f"does NOT fit: {by}")
    out.print("")
    _print_figures(out, "step", _step_rows(plan))
    out.print(f"bound by {plan.time.bound}" if plan.time else "time unknown: see the notes")
    if plan.links:
        out.print("")
        _print_links(out, plan)
    out.print("")
    _print_figures(out, "run", _run_rows(plan))
    if plan.settings:
        out.print("")
        print_settings(out, plan)
    for note in plan.notes:
        out.log(f"note: {note}")


def print_table(out: Output, plans: Sequence[Plan | PlanFailure]) -> None:
    """Several plans, a row each."""
    from aifx.verbs.planning import Plan

    columns = [
        "hardware", "fits", "memory", "of", "step", "bound by", "links", "MFU", "speed", "per device", "time", "energy",
        "cost",
    ]  # fmt: skip
    rows = [
        _table_row(plan) if isinstance(plan, Plan) else (plan.hardware, "-", *[None] * (len(columns) - 2))
        for plan in plans
    ]
    out.table(columns, rows, right=columns[2:])
    for plan in plans:
        if not isinstance(plan, Plan):
            out.log(f"{plan.hardware}: {plan.what} ({plan.why}); {plan.hint}")
            continue
        if plan.not_compiled:
            out.log(f"{plan.hardware}: not compiled: {plan.not_compiled}")
        for note in plan.notes:
            out.log(f"{plan.hardware}: {note}")
        if plan.settings:
            print_settings(out, plan)


def _table_row(plan: Plan) -> tuple[str | None, ...]:
    time, memory = plan.time, plan.memory
    named = plan.hardware, "yes" if plan.fits else "NO", size(memory.total.value), size(memory.capacity.value)
    links = size(sum(use.sent_bytes for use in plan.links)) if plan.links else None
    if time is None:
        return (*named, "unknown", None, links, *[None] * 6)
    return (
        *named,
        between(time.step_s, seconds),
        time.bound,
        links,
        between(time.mfu, percent) if time.mfu else None,
        f"{between(time.units_per_s, count)} {plan.unit}/s",
        between(time.units_per_s_per_device, count),
        between(time.hours, span),
        between(time.energy_kwh, kilowatt_hours) if time.energy_kwh else None,
        between(time.cost, money) if time.cost else None,
    )


def print_settings(out: Output, plan: Plan) -> None:
    """Lines for aifx.toml."""
    out.print(f"# aifx.toml, for {plan.hardware}")
    sections: dict[str, list[str]] = {}
    for key, value in plan.settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append(f"{name} = {literal(value)}")
    for section, lines in sections.items():
        out.print("\n".join([f"[{section}]", *lines]))


def memory_parts(memory: Memory) -> list[tuple[str, Figure]]:
    return [(f.name, figure) for f in fields(memory) if (figure := getattr(memory, f.name)) is not None]


def size(value: float) -> str:
    return f"-{readable_bytes(int(-value))}" if value < 0 else readable_bytes(int(value))


def seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def percent(value: float) -> str:
    return f"{value:.0%}"


def count(value: float) -> str:
    """With three significant digits: "12,300"."""
    return f"{float(f'{value:.3g}'):,.{0 if value >= 100 else 2}f}"


def kilowatt_hours(value: float) -> str:
    return f"{value:,.4g} kWh"


def money(value: float) -> str:
    return f"{value:,.2f}"


def between(figure: Figure, formatted: Callable[[float], str]) -> str:
    """ "1.6 to 2.4 s" if the figure has an interval, otherwise its value."""
    if figure.low is None or figure.high is None:
        return formatted(figure.value)
    low, high = formatted(figure.low), formatted(figure.high)
    number, _, unit = low.partition(" ")
    return f"{number if unit and high.endswith(f' {unit}') else low} to {high}"


def span(hours: float) -> str:
    """ "12 s", "4.2 min", "37 h", "12 days"."""
    for limit, unit, per_hour in ((1 / 60, "s", 3600.0), (1.0, "min", 60.0), (72.0, "h", 1.0)):
        if hours < limit:
            return f"{hours * per_hour:.3g} {unit}"
    return f"{hours / 24:,.0f} days"


def _step_rows(plan: Plan) -> list[tuple[str, str, Figure]]:
    time = plan.time
    counted = [
        ("model FLOPs", f"{plan.model_flops_per_step.value:.4g}", plan.model_flops_per_step),
        ("FLOPs", f"{plan.flops_per_step.value:.4g}", plan.flops_per_step),
        ("bytes", size(plan.bytes_per_step.value), plan.bytes_per_step),
    ]
    if time is None:
        return counted
    per_device = f"{between(time.units_per_s_per_device, count)} {plan.unit}/s"
    return [
        *counted,
        ("products", seconds(time.products_s.value), time.products_s),
        ("elementwise", seconds(time.elementwise_s.value), time.elementwise_s),
        *([
            ("links", seconds(time.links_s.value), time.links_s),
            ("exposed links", seconds(time.exposed_s.value), time.exposed_s),
        ] if plan.num_devices > 1 else []),
        ("update", seconds(time.update_s.value), time.update_s),
        ("step time", between(time.step_s, seconds), time.step_s),
        *([("MFU", between(time.mfu, percent), time.mfu)] if time.mfu else []),
        ("speed", f"{between(time.units_per_s, count)} {plan.unit}/s", time.units_per_s),
        *([("per device", per_device, time.units_per_s_per_device)] if plan.num_devices > 1 else []),
    ]  # fmt: skip


def _print_links(out: Output, plan: Plan) -> None:
    """Print the bytes that a step sends, by kind of collective."""
    columns = ["links", "devices", "calls", "sent per device", "time", "over", ""]
    rows = [
        (
            use.kind,
            f"{use.devices}",
            f"{use.calls:,.0f}",
            size(use.sent_bytes),
            seconds(use.seconds),
            use.over,
            "while computing" if use.in_loop else "exposed",
        )
        for use in plan.links
    ]
    out.table(columns, rows, right=columns[1:5])


def _run_rows(plan: Plan) -> list[tuple[str, str, Figure]]:
    time, disk = plan.time, plan.disk
    of_time = [] if time is None else [
        ("time", between(time.hours, span), time.hours),
        *([("energy", between(time.energy_kwh, kilowatt_hours), time.energy_kwh)] if time.energy_kwh else []),
        *([("cost", between(time.cost, money), time.cost)] if time.cost else []),
    ]  # fmt: skip
    return [
        *of_time,
        ("checkpoint", size(disk.checkpoint_bytes.value), disk.checkpoint_bytes),
        ("checkpoints that fit", f"{disk.fitting.value:,.0f} (keeps {disk.kept})", disk.fitting),
    ]


def _print_figures(out: Output, title: str, rows: Sequence[tuple[str, str, Figure]]) -> None:
    cells = [(name, text, f"{figure.basis}: {figure.source}") for name, text, figure in rows]
    out.table([title, "", "from"], cells, right=[""], wrap=True)
