"""Needs of a run, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import UsageError
from aifx.core.project import find_project
from aifx.planning.plan import Memory, Plan
from aifx.verbs.arguments import Settings, StrPath, overrides
from aifx.verbs.models import check_base

if TYPE_CHECKING:
    from aifx.planning.figures import Figure
    from aifx.planning.hardware import HardwareList
    from aifx.planning.planner import PlanFailure, PlanList


def plan(
    *hardware: str,
    settings: Settings = None,
    run: str | None = None,
    fit: bool = False,
    price: float | None = None,
    power: float | None = None,
    compile: bool = True,
    project: StrPath = ".",
) -> PlanList:
    """Predict memory, time, energy and cost of a run before it starts.

    The hardware need not be here. aifx compiles the training step for it if a compiler is installed, and counts
    otherwise. Each number says where it comes from. The verdict is bad if the run fits on none of the hardware.
    Raises UsageError if the run or version that `finetune.base` names is not there.

    Args:
        hardware: to plan for: "this", "h100x8", "v5e-256"; by default this machine.
        settings: values over those of aifx.toml, by key.
        run: plan this run with its own settings, and keep the plan in its directory.
        fit: search mesh, gradient accumulation and `model.remat` for settings that fit.
        price: of a chip per hour.
        power: of a chip, in watts; by default the vendor's board power.
        compile: compile the step, or only count.
        project: a folder in the project.

    Example:
        >>> aifx.plan("h100x8", settings={"train.global_batch_size": 8}, compile=False).plans[0].fits
        True
    """
    from aifx.kinds import load_config, read_config
    from aifx.planning.hardware import find_hardware
    from aifx.planning.planner import keep_plan, make_plans
    from aifx.planning.step_time import Assumptions

    names = hardware or ("this",)
    if run is not None and (settings or fit or len(names) > 1):
        why = "the plan of a run has the settings that it was started with"
        what = "--run can't be used with --set, --fit or several --hardware"
        raise UsageError(what, why, f"aifx plan --run {run}")
    found = find_project(Path(project))
    directory = found.existing_run(run) if run is not None else None
    config = load_config(found, overrides(settings)) if directory is None else read_config(directory.config, found)
    if directory is None:
        check_base(config.finetune, config.apply_to(found))
    plans = make_plans(
        found,
        config,
        [find_hardware(name, config.train.devices) for name in dict.fromkeys(names)],
        Assumptions(price, power),
        assets=directory.assets if directory is not None else None,
        with_compiler=compile,
        fit=fit,
    )
    if directory is not None:
        keep_plan(directory, plans)
    return plans


def plan_hardware() -> HardwareList:
    """List the hardware that `plan` knows.

    Example:
        >>> "h100x8" in [one.name for one in aifx.plan_hardware().hardware]
        True
    """
    from aifx.planning.hardware import list_hardware

    return list_hardware()
