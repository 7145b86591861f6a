"""Runs with adapters whose values are functions of their names, as if they had been trained."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peer_models

from aifx.checkpoint.manifest import ArrayEntry, read_manifest
from aifx.checkpoint.writing import write_checkpoint
from aifx.core.project import Project, RunDirectory
from aifx.hub.architectures import named_specs
from aifx.kinds import read_config
from aifx.loading.restore import RestoredRun
from aifx.parallel.context import ForwardContext
from aifx.runs.binding import BaseRun, open_digests, weights_digest
from aifx.specs import merge_frozen, split_frozen
from aifx.tasks.registry import load_task


def make_adapter_run(project: Project, base: RunDirectory, *settings: str, name: str = "adapted") -> RunDirectory:
    """A run of step 1 whose base is the imported run `base`."""
    run, overrides = project.run(name), [f"finetune.base={base.name}", "finetune.adapter=lora", "lora.rank=2"]
    overrides.append("lora.alpha=1")
    shutil.copytree(base.assets, run.assets)
    config = read_config(base.config, project, [*overrides, *settings])
    run.config.write_text(config.to_toml())
    specs = load_task(config, project, run.assets).model.specs()
    trained = named_specs(split_frozen(specs, specs)[0])
    document = BaseRun(base.name, 0, weights_digest(read_manifest(base.checkpoints / "0"))).document()
    run.provenance.write_text(json.dumps({"finetuned_from": document}))
    digests = open_digests(run, config, is_fresh=True, base=document)
    entries = {f"params/{name}": ArrayEntry("float32", spec.shape, "") for name, spec in trained.items()}
    arrays = ((f"params/{name}", peer_models.values_of(name, spec.shape)) for name, spec in trained.items())
    run.checkpoints.mkdir()
    write_checkpoint(run.checkpoints, 1, entries, arrays, run=digests.binding())
    return run


def logits_of(trained: RestoredRun) -> np.ndarray:
    """The logits `[rows, seq, vocab]` of `peer_models.inputs()`."""
    return _forward(trained, with_head=True)


def hidden_of(trained: RestoredRun) -> np.ndarray:
    """The head's input `[rows, seq, embed]` for `peer_models.inputs()`."""
    return _forward(trained, with_head=False)


def _forward(trained: RestoredRun, *, with_head: bool) -> np.ndarray:
    model, ctx, tokens = trained.task.model, ForwardContext(trained.layout), peer_models.inputs()

    @jax.jit
    def forward(params, tokens):
        hidden = model.hidden(params, {"inputs": tokens}, ctx)
        return model.head(params, ctx)(hidden) if with_head else hidden

    params = merge_frozen(trained.params, trained.frozen)
    return np.asarray(forward(params, jnp.asarray(tokens, jnp.int32))).reshape(*tokens.shape, -1)
