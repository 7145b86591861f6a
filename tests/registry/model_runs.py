"""Runs whose models are their initialization: made without a step of training."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.manifest import read_manifest
from aifx.core.json_files import write_text
from aifx.core.project import Project, RunDirectory
from aifx.data.spec import keep_spec
from aifx.kinds import load_config
from aifx.loading.restore import digest_of_frozen
from aifx.nn.stacking import unstack_layers
from aifx.parallel.layout import local_layout
from aifx.programs.build import build
from aifx.programs.state import make_frozen
from aifx.runs.binding import BaseRun, open_digests, weights_digest
from aifx.tasks import open_task

OWN_TASK = Path(__file__).parents[1] / "training" / "tiny.py"

TABLE = """
[task]
kind = "tabular"
[model]
embed_dim = 8
num_layers = 1
[data]
path = "data/table.csv"
[train]
global_batch_size = 8
"""

TEXT = """
[task]
kind = "language"
[model]
num_layers = 2
embed_dim = 16
num_heads = 2
num_kv_heads = 1
mlp_dim = 32
[data]
tokenizer = "byte"
train = ["data/*.txt"]
seq_len = 16
[train]
global_batch_size = 4
"""

OWN = """
[task]
kind = "tiny:TinyTask"
[train]
global_batch_size = 8
"""


def make_project(root: Path, toml: str) -> Project:
    """A project with data for each of the configurations above."""
    (root / "data").mkdir(parents=True)
    (root / "aifx.toml").write_text(toml)
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{'xyz'[n % 3]},{'yes' if a > 0 else 'no'}" for n, a in enumerate(rng.normal(size=60))]
    (root / "data/table.csv").write_text("\n".join(["amount,colour,target", *rows]) + "\n")
    (root / "data/text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    shutil.copy(OWN_TASK, root / "tiny.py")
    return Project(root)


def make_run(project: Project, *settings: str, name: str = "main", base: RunDirectory | None = None) -> RunDirectory:
    """A run whose checkpoint of step 1 has the values of `_values`.

    Args:
        base: the run that it was tuned from, whose settings it begins with.
    """
    if base is not None:
        settings = (f"finetune.base={base.name}", *settings)
    config = load_config(project, settings, {})
    run = project.run(name)
    run.assets.mkdir(parents=True)
    task = open_task(config, project, run.assets)
    keep_spec(run.assets, task.data)
    programs = build(config, task, local_layout(1))
    params = programs.init_params()
    params = unstack_layers(params) if programs.is_stacked else params
    document = None
    write_text(run.provenance, json.dumps({"finetuned_from": None}))
    if base is not None:
        weights = weights_digest(read_manifest(base.checkpoints / "1"))
        document = BaseRun(base.name, 1, weights).document()
        write_text(run.provenance, json.dumps({"finetuned_from": document}))
        document = document if config.finetune.adapter != "none" else None
    write_text(run.config, config.to_toml())
    checkpoints = Checkpoints(run.checkpoints, config.checkpoint)
    checkpoints.bind(open_digests(run, config, is_fresh=True, base=document).binding)
    state = {"params": jax.tree_util.tree_map_with_path(_values, params)}
    if programs.has_ema:
        state["ema"] = jax.tree.map(lambda x: x.astype(np.float32) * 2, state["params"])
    frozen = None if config.finetune.adapter != "none" else make_frozen(programs.frozen_specs, 0, programs.layout)
    checkpoints.save(1, state, host={"frozen_digest": digest_of_frozen(programs, frozen or {})})
    checkpoints.wait()
    return run


def _values(path: Any, first: jax.Array) -> jax.Array:
    """The first values of an array with noise that is a function of its name."""
    rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
    return first + jax.numpy.asarray(rng.normal(0, 0.1, first.shape), first.dtype)
