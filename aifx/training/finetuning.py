"""A run that begins with the weights of an earlier one: `[finetune] base_run`."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import jax

from aifx.checkpoint.manifest import read_manifest
from aifx.checkpoint.naming import flat_names, nest
from aifx.config import Config
from aifx.core.errors import ConfigError
from aifx.core.files import read_file
from aifx.core.project import Project, RunDirectory
from aifx.data.spec import need_spec
from aifx.data.text import TOKENIZER_FILE
from aifx.loading.base_weights import BaseWeights
from aifx.nn.stacking import unstack_layers
from aifx.parallel.context import ForwardContext
from aifx.programs.build import Programs
from aifx.programs.freezing import head_names
from aifx.programs.state import TrainState, first_average
from aifx.runs.base_run import BaseRun, weights_digest
from aifx.runs.provenance import read_provenance
from aifx.training.resume_checks import Fork
from aifx.training.state import from_tree, to_tree

logger = logging.getLogger(__name__)


def choose_base(config: Config, project: Project, run: RunDirectory) -> BaseRun | None:
    """The checkpoint that `[finetune]` names, or None. Raises UsageError, CheckpointError, ConfigError."""
    from aifx.loading.restore import choose_step

    name = config.finetune.base_run
    if name is None:
        return None
    if name == run.name:
        why = "a run cannot begin with its own weights"
        raise ConfigError(f"finetune.base_run = {name!r} is this run", why, "aifx train --run ANOTHER-NAME")
    base = project.existing_run(name)
    step = choose_step(base, config, config.finetune.base_step)
    manifest = read_manifest(base.checkpoints / str(step))
    _check_tokenizer(run, base, manifest.run.get("assets", {}).get(TOKENIZER_FILE))
    return BaseRun(name, step, weights_digest(manifest))


def base_of_fork(fork: Fork, config: Config) -> BaseRun | None:
    """The base of a fork, which is that of its origin. Raises ConfigError for another, if it is still needed."""
    named = read_provenance(fork.run).get("finetuned_from")
    if not named:
        return None
    changed = [d for d in fork.changes if d.key in ("finetune.base_run", "finetune.base_step")]
    if changed and config.finetune.adapter != "none":
        what = f"a fork of run {fork.run.name!r} cannot have another base run"
        why = "\n".join([*map(str, changed), "its adapters were trained beside the weights of that one"])
        raise ConfigError(what, why, "aifx train --run NAME    (a new run, from its first step)")
    return BaseRun(**named)


def with_base_weights(state: TrainState, programs: Programs, run: RunDirectory) -> TrainState:
    """The state with the weights of the base run that the provenance of `run` names; unchanged if it names none.

    Arrays of equal name and shape are taken. Those of the head may differ and then keep their first values. With other
    classes than in the base run, all of the head does.

    Raises CheckpointError if the checkpoint is not the one that is named, ConfigError if other arrays differ.
    """
    named = read_provenance(run).get("finetuned_from")
    if not named:
        return state
    base = run.sibling(named["run"])
    weights = BaseWeights(run, BaseRun(**named), getattr(programs.model, "adapts", ()))
    tree = to_tree(state, stacked=programs.is_stacked)
    ours = flat_names(tree["params"])
    head = head_names(programs.model, ForwardContext(programs.layout.single))
    is_other_head = need_spec(base.assets).classes != programs.task.data.classes
    wanted, differing = {}, []
    for name, array in ours.items():
        entry = weights.entries.get(name)
        if entry is None or entry.shape != array.shape:
            differing.append((name, weights.difference(name, array.shape)))
        elif is_other_head and name in head:
            differing.append((name, f"{name} is for other classes there"))
        else:
            wanted[name] = jax.ShapeDtypeStruct(array.shape, entry.dtype, sharding=array.sharding)
    if unfit := [text for name, text in differing if name not in head]:
        raise weights.misfit(unfit, "only the head may differ")
    specs = flat_names(unstack_layers(programs.model.specs()) if programs.is_stacked else programs.model.specs())
    read = weights.read(wanted, specs)
    if differing:
        logger.info(f"the head starts from its initial values: {'; '.join(text for _, text in differing)}")
    taken = {name: array.astype(ours[name].dtype) for name, array in read.items()}
    tree["params"] = _with(tree["params"], taken)
    if programs.has_ema:
        tree["ema"] = first_average(tree["params"])
    return from_tree(tree, programs.abstract[0], stacked=programs.is_stacked)


def _with(tree: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    """The tree with the arrays of these names instead of its own."""
    return nest({name: taken.get(name, array) for name, array in flat_names(tree).items()})


def _check_tokenizer(run: RunDirectory, base: RunDirectory, theirs: str | None) -> None:
    """Raises ConfigError if the token tables of the two runs number different tokens. `theirs`: SHA-256."""
    ours = run.assets / TOKENIZER_FILE
    if theirs is None or not ours.exists():
        return
    if hashlib.sha256(read_file(ours, below=run.path)).hexdigest() != theirs:
        raise ConfigError(
            f"the tokenizer is not that of run {base.name}, which finetune.base_run names",
            "its weights know other tokens",
            f'tokenizer = "runs/{base.name}/assets/{TOKENIZER_FILE}"    (below [data])',
        )
