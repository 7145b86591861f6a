"""Plans of a project or of a run, each from a process of its own (`aifx.planning.worker`)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aifx.config import Config
from aifx.core.errors import AifxError, EnvironmentFault, ExitCode
from aifx.core.json_files import write_json
from aifx.core.json_values import plain
from aifx.core.limits import address_space_limit
from aifx.core.os_errors import FULL, errno_of, first_line
from aifx.core.processes import Child, run_many
from aifx.core.progress import report_progress
from aifx.core.project import Project, RunDirectory
from aifx.core.results import Result
from aifx.parallel.processes import started_by
from aifx.planning.fit import smallest_machine
from aifx.planning.hardware import Hardware, hardware_of_layout
from aifx.planning.plan import Plan, make_plan
from aifx.planning.step_time import Assumptions
from aifx.planning.work import apply_settings

if TYPE_CHECKING:
    from aifx.parallel.layout import Layout

AT_ONCE = 2

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""With which compilers compile and open no device, whatever this machine has."""
LIMIT_S = 1800.0
ADVICE_S = 180.0
"""For the settings that an error names."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanFailure:
    """Hardware that a run cannot be planned for, and why."""

    hardware: str
    what: str
    why: str
    hint: str


@dataclass(frozen=True)
class PlanList(Result):
    """The document that `aifx plan --json` prints: a plan or a failure for each hardware, in the order asked for."""

    plans: list[Plan | PlanFailure]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if any(isinstance(one, Plan) and one.fits for one in self.plans) else ExitCode.VERDICT


@dataclass(frozen=True)
class PlanFile:
    """plan.json in a run: what `aifx plan --run` predicted of it."""

    schema_version: Literal[1]
    plan: Plan


def make_plans(
    project: Project,
    config: Config,
    hardware: Sequence[Hardware],
    given: Assumptions,
    *,
    assets: Path | None = None,
    with_compiler: bool = True,
    fit: bool | Literal["smaller"] = False,
    limit_s: float = LIMIT_S,
) -> PlanList:
    """Plans for each hardware, in order. Raises what a single plan fails with.

    Args:
        assets: of the run that is planned; None for the project.
        fit: look for settings that fit, as `mesh.auto` does; "smaller": and need less memory than those of the
            configuration.
    """
    request = {
        "root": str(project.root),
        "config": config.to_toml(origins=False),
        "assets": None if assets is None else str(assets),
        "compile": with_compiler,
        "fit": fit or config.mesh.auto,
        "limit_s": limit_s,
    }
    ended: dict[str, Child] = {}
    with (
        report_progress("planning", None, "") as progress,
        closing(run_many((_start(one, request) for one in hardware), AT_ONCE)) as children,
    ):
        for child in children:
            progress.advance(0)  # it goes on: each has its limit
            if child is not None:
                ended[child.name] = child
    plans = list[Plan | PlanFailure]()
    for one in hardware:
        try:
            events = _events(ended[one.name], limit_s)
            plans.append(_plan(one, config, events, project, given))
        except AifxError as error:
            if len(hardware) == 1:
                raise
            plans.append(PlanFailure(one.name, error.what, error.why, error.hint))
    return PlanList(plans)


def keep_plan(run: RunDirectory, found: PlanList) -> None:
    """Write a run's plan into its directory, for `aifx runs show`."""
    (plan,) = found.plans
    assert isinstance(plan, Plan)
    write_json(run.plan, plain(PlanFile(1, plan)))


def out_of_memory(
    error: BaseException, project: Project, config: Config, run: RunDirectory, layout: Layout
) -> AifxError | None:
    """The error of a training whose devices have too little memory, with settings that need less and fit them.

    None if the error is another one, or if no such settings are found in time.
    """
    is_full = errno_of(error) in FULL or "No space left" in str(error)
    if "RESOURCE_EXHAUSTED" not in str(error) or is_full or address_space_limit() is not None:
        return None
    log.warning("out of memory; looking for settings that need less")
    assets = run.assets if any(run.assets.iterdir()) else None
    try:
        here = [hardware_of_layout(layout)]
        found = make_plans(project, config, here, Assumptions(), assets=assets, fit="smaller", limit_s=ADVICE_S)
    except AifxError:
        return None
    (plan,) = found.plans
    if not isinstance(plan, Plan) or not plan.fits:
        return None
    changed = [
        f"--set {key}={value}"
        for key, value in plan.settings.items()
        if value != getattr(getattr(config, key.partition(".")[0]), key.partition(".")[2])
    ]
    hint = " ".join([*started_by(os.environ), "train --run", run.name, *changed])
    return EnvironmentFault("out of memory", first_line(error), hint) if changed else None


def _start(hardware: Hardware, request: Mapping[str, Any]) -> Child:
    text, environ = json.dumps({**request, "hardware": hardware.document()}), {**os.environ, **ENVIRONMENT}
    return Child.of_module("aifx.planning.worker", text, name=hardware.name, limit_s=request["limit_s"], env=environ)


def _events(child: Child, limit_s: float) -> dict[str, dict[str, Any]]:
    """By name. Raises what the worker failed with."""
    events = {str(event.get("event")): event for event in child.take_events()}
    assert child.ended is not None
    if failed := events.get("failed"):
        raise AifxError(failed["what"], failed["why"], failed["hint"])
    if "counted" not in events:
        raise EnvironmentFault(f"the plan for {child.name} failed", child.ended.why, "AIFX_DEBUG=1 aifx plan")
    if not child.ended.succeeded:
        limit = f"it took longer than {limit_s:g} s" if child.ended.cut == "limit" else child.ended.why
        events.setdefault("not_compiled", {"why": f"the compiler failed: {limit}"})
    return events


def _plan(
    hardware: Any, config: Config, events: Mapping[str, dict[str, Any]], project: Project, given: Assumptions
) -> Plan:
    settings = (events.get("fit") or events.get("nothing_fits") or {}).get("settings", {})
    why = events.get("not_compiled", {}).get("why", "" if "compiled" in events else "--no-compile was given")
    try:
        plan = make_plan(
            hardware,
            apply_settings(config, settings),
            events["counted"],
            events.get("compiled"),
            why,
            project.runs_path,
            given,
            settings,
            events.get("not_compiled", {}).get("out_of_memory", False),
        )
    except ValueError as error:
        raise EnvironmentFault(f"no plan for {hardware.name}", str(error), "") from None
    if (nothing := events.get("nothing_fits")) is not None:
        machine = smallest_machine(nothing["needed_bytes"])
        plan.notes.append(
            f"nothing fits: the smallest machine that would is {machine}"
            if machine
            else "nothing fits, on any device of the catalogue: the state would have to be divided among devices"
        )
    return plan
