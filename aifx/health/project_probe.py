"""Print a project's requirements as JSON: `python -m aifx.health.project_probe`, in a project.

This is its own process, because it imports JAX, to count the optimizer's state, and with `--project` the project's own
task. It uses no device: JAX runs on the CPU.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from aifx.core.errors import AifxError
from aifx.core.facts import Absent, to_document
from aifx.core.processes import connect
from aifx.core.project import Project, find_project
from aifx.core.redaction import redact

if TYPE_CHECKING:
    from aifx.config import Config
    from aifx.config.sections import CheckpointSection, DataSection

IMPORT_TASK = "--import-task"
"""The argument that lets this process import the project's own task."""

STEP_BYTES = 4
"""A checkpoint also contains the step counter."""


def look_at(project: Project, *, imports_task: bool = False) -> dict[str, Any] | Absent:
    from aifx.kinds import load_config, project_code

    try:
        if not imports_task and (names := project_code(project.config_path)):
            return Absent(f"{', '.join(names)} is code of the project, which aifx imports only with --project")
        config = load_config(project)
    except AifxError as error:
        unknown = Absent("the configuration is invalid")
        rest = dict.fromkeys(("data", "plan", "disk"), unknown)
        return {"name": project.root.name, "config": {"is_valid": False, "why": _reason(error)}, **rest}
    plan = _plan(project, config)
    return {
        "name": config.project.name,
        "config": {"is_valid": True, "why": ""},
        "data": _data(config.data, config.apply_to(project)),
        "plan": plan,
        "disk": _disk(project, config.checkpoint, plan),
    }


def _reason(error: Exception) -> str:
    parts = (error.what, error.why.replace("\n", "; ")) if isinstance(error, AifxError) else (str(error),)
    return redact("; ".join(filter(None, parts)))[:400]


def _data(data: DataSection, project: Project) -> dict[str, Any] | Absent:
    """Return whether the files of the configuration exist and have the right format."""
    try:
        files = data.read_beginnings(project)
    except (AifxError, OSError, ValueError) as error:
        return {"is_readable": False, "why": _reason(error), "files": 0}
    if files is None:
        return Absent("the project's own task reads its data")
    return {"is_readable": True, "why": "", "files": files}


def _plan(project: Project, config: Config) -> dict[str, Any] | Absent:
    """Return the bytes that the run needs at least: parameters, optimizer state, and gradients of the weights.
    Activations come in addition, and depend on the batch."""
    from aifx.parallel.layout import abstract_layout
    from aifx.programs.build import build
    from aifx.tasks.registry import describe_task

    try:
        programs = build(config, describe_task(config, project), abstract_layout(1, "cpu", "cpu"))
        size = programs.state_bytes()
    except AifxError as error:
        return Absent(f"the configuration does not determine the size of the model: {_reason(error)}")
    kept = size["parameters"] + size["optimizer"] + STEP_BYTES
    devices = config.train.devices
    return {
        "parameters": programs.num_parameters,
        "checkpoint_bytes": kept,
        "training_bytes": kept + size["frozen"] + size["gradients"],
        "devices": devices if devices != "all" else Absent("train.devices is all"),
    }


def _disk(project: Project, checkpoint: CheckpointSection, plan: dict[str, Any] | Absent) -> dict[str, Any]:
    """Return the space for checkpoints: those that are kept, and the one that is being written."""
    from aifx.checkpoint.manifest import list_checkpoints

    folder = next(p for p in (project.runs_path, *project.runs_path.parents) if p.exists())
    written = [info for run in project.runs()[-1:] for info in list_checkpoints(run.checkpoints) if not info.damaged]
    planned = plan["checkpoint_bytes"] if isinstance(plan, dict) else plan
    size = written[-1].size_bytes if written else planned
    count = checkpoint.keep_last + checkpoint.keep_best + 1
    return {
        "folder": str(project.runs_path),
        "free_bytes": shutil.disk_usage(folder).free,
        "checkpoints": count,
        "checkpoint_bytes": size,
        "needed_bytes": size * count if isinstance(size, int) else size,
        "is_writable": os.access(folder, os.W_OK),
    }


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    emit = connect()
    emit(to_document(look_at(find_project(), imports_task=IMPORT_TASK in sys.argv[1:])))
