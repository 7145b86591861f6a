"""A run that begins with the weights of an earlier one: `[finetune] base_run`."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from typing import Any

import jax

from aifx.checkpoint.manifest import read_manifest
from aifx.checkpoint.naming import flat_names, nest
from aifx.config import Config
from aifx.core.errors import CheckpointError, ConfigError
from aifx.core.files import read_file
from aifx.core.project import Project, RunDirectory
from aifx.data.spec import need_spec
from aifx.data.text import TOKENIZER_FILE
from aifx.parallel.context import ForwardContext
from aifx.programs.build import Programs
from aifx.programs.freezing import head_names
from aifx.programs.state import TrainState, first_average
from aifx.runs.provenance import read_provenance
from aifx.training.state import from_tree, to_tree

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseRun:
    """The checkpoint that a run begins with. The manifest's `checksum` covers the digest of each of its arrays."""

    run: str
    step: int
    checksum: str

    def document(self) -> dict[str, Any]:
        return asdict(self)


def choose_base(config: Config, project: Project, run: RunDirectory) -> BaseRun | None:
    """The best checkpoint of `finetune.base_run`; None if that is not set. Raises UsageError, CheckpointError."""
    from aifx.loading.restore import choose_step

    name = config.finetune.base_run
    if name is None:
        return None
    if name == run.name:
        why = "a run cannot begin with its own weights"
        raise ConfigError(f"finetune.base_run = {name!r} is this run", why, "aifx train --run ANOTHER-NAME")
    base = project.existing_run(name)
    step = choose_step(base, config, "best")
    _check_tokenizer(run, base, step)
    return BaseRun(name, step, _checksum(base, step))


def with_base_weights(state: TrainState, programs: Programs, project: Project, run: RunDirectory) -> TrainState:
    """The state with the weights of the base run that the provenance of `run` names; unchanged if it names none.

    Arrays of equal name and shape are taken. Those of the head may differ and then keep their first values. With other
    classes than in the base run, all of the head does.

    Raises CheckpointError if the checkpoint is not the one that is named, ConfigError if other arrays differ.
    """
    named = read_provenance(run).get("finetuned_from")
    if not named:
        return state
    from aifx.checkpoint.checkpoints import Checkpoints

    base, found = project.existing_run(named["run"]), BaseRun(**named)
    if _checksum(base, found.step) != found.checksum:
        what = f"the checkpoint of step {found.step} of run {base.name} is not what run {run.name} began with"
        raise CheckpointError(what, "its checksum differs", "aifx train --run ANOTHER-NAME")
    arrays = read_manifest(base.checkpoints / str(found.step)).arrays
    part = "ema" if any(name.startswith("ema/") for name in arrays) else "params"
    tree = to_tree(state, stacked=programs.is_stacked)
    ours = flat_names(tree["params"])
    head = head_names(programs.model, ForwardContext(programs.layout.single))
    is_other_head = need_spec(base.assets).classes != programs.task.data.classes
    wanted, differing = {}, []
    for name, array in ours.items():
        entry = arrays.get(f"{part}/{name}")
        if entry is None or entry.shape != array.shape:
            there = "it does not have it" if entry is None else f"it is {list(entry.shape)} there"
            differing.append((name, f"{name} is {list(array.shape)}, and {there}"))
        elif is_other_head and name in head:
            differing.append((name, f"{name} is for other classes there"))
        else:
            wanted[f"{part}/{name}"] = jax.ShapeDtypeStruct(array.shape, entry.dtype, sharding=array.sharding)
    if unfit := [text for name, text in differing if name not in head]:
        more = f"; {len(unfit) - 3} more" if len(unfit) > 3 else ""
        what = f"the model does not fit the weights of run {base.name}, which finetune.base_run names"
        hint = f"aifx config show --run {base.name}    (only the head may differ)"
        raise ConfigError(what, "; ".join(unfit[:3]) + more, hint)
    read = Checkpoints(base.checkpoints, programs.config.checkpoint).read(found.step, wanted)
    if differing:
        logger.info(f"the head starts from its initial values: {'; '.join(text for _, text in differing)}")
    taken = {
        name: array.astype(ours[name].dtype) for name, array in ((n.partition("/")[2], a) for n, a in read.items())
    }
    tree["params"] = _with(tree["params"], taken)
    if programs.has_ema:
        tree["ema"] = first_average(tree["params"])
    return from_tree(tree, programs.abstract[0], stacked=programs.is_stacked)


def _with(tree: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    """The tree with the arrays of these names instead of its own."""
    return nest({name: taken.get(name, array) for name, array in flat_names(tree).items()})


def _checksum(run: RunDirectory, step: int) -> str:
    checksum: str = read_manifest(run.checkpoints / str(step)).to_json()["checksum"]
    return checksum


def _check_tokenizer(run: RunDirectory, base: RunDirectory, step: int) -> None:
    """Raises ConfigError if the token tables of the two runs number different tokens."""
    ours = run.assets / TOKENIZER_FILE
    theirs = read_manifest(base.checkpoints / str(step)).run.get("assets", {}).get(TOKENIZER_FILE)
    if theirs is None or not ours.exists():
        return
    if hashlib.sha256(read_file(ours, below=run.path)).hexdigest() != theirs:
        raise ConfigError(
            f"the tokenizer is not that of run {base.name}, which finetune.base_run names",
            "its weights know other tokens",
            f'tokenizer = "runs/{base.name}/assets/{TOKENIZER_FILE}"    (below [data])',
        )
