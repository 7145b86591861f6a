"""The forms of jax_kernels that a run's programs are made of: chosen once, kept in the run, taken again at resume."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from jax.sharding import Mesh

from aifx.config import Config
from aifx.data.base import Say
from aifx.parallel import DATA_AXIS
from aifx.project import Project, RunDirectory, cache_path
from aifx.runs import write_json
from jax_kernels.choosing import Choices, using
from jax_kernels.dividing import Division
from jax_kernels.forms import Device, current_device
from jax_kernels.op import Choice
from jax_kernels.tuning import Winners


def run_choices(run: RunDirectory, config: Config, *, say: Say, mesh: Mesh | None = None, keep: bool = True) -> Choices:
    """The choices that a run made, to go on with. New ones: by `[kernels]`, by what was measured on this kind of
    device, or by the best guess.

    Args:
        mesh: of the devices that the program is divided among.
        keep: write new ones into the run.
    """
    device = current_device()

    def write(choices: Choices) -> None:
        if keep:
            made = {key: choice.document() for key, choice in choices.made.items()}
            write_json(run.kernels, {"schema_version": 1, "device": device.kind, "choices": made})

    return Choices(
        made=_read(run, device),
        asked=config.kernels.model_dump(),
        measured=Winners(winners_path(), device),
        on_choice=write,
        tell=say,
        division=Division(mesh, DATA_AXIS) if mesh is not None and mesh.size > 1 else None,
    )


def project_choices(project: Project, config: Config, *, say: Say) -> Choices:
    """What a new run of the project would choose, and the calls that its training step makes; nothing is compiled."""
    from aifx.parallel import make_mesh
    from aifx.tasks.registry import create_task
    from aifx.train.state import abstract_state
    from aifx.train.step import lower_step, make_recipe

    with tempfile.TemporaryDirectory() as folder:
        mesh = make_mesh(config.train.devices)
        choices = run_choices(RunDirectory(Path(folder)), config, say=say, mesh=mesh, keep=False)
        task = create_task(config, project, Path(folder), say=say)
        recipe = make_recipe(config, task, mesh)
        batch = task.source("train").read(0, slice(0, config.train.global_batch_size))
        with using(choices):
            lower_step(recipe, abstract_state(recipe.specs, recipe.optimizer, recipe.mesh), batch)
    return choices


def winners_path() -> Path:
    """Where `aifx kernels tune` keeps what it measured."""
    return cache_path() / "kernels"


def _read(run: RunDirectory, device: Device) -> dict[str, Choice]:
    """What the run chose on this kind of device; nothing where it chose nothing yet, or ran on another."""
    try:
        document = json.loads(run.kernels.read_bytes())
        if document["device"] != device.kind:
            return {}
        return {key: Choice.from_document(value) for key, value in document["choices"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
