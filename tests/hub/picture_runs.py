"""Computations with an imported image model."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from forward import outputs_of

from aifx.core.project import Project
from aifx.hub.importing import ImportedRun, import_model
from aifx.loading.restore import restore_run

BOUND = 5e-4


def assert_same_logits(folder: Path, project: Project) -> ImportedRun:
    """Import the model of a folder and compare its logits with those of transformers, in logits.npz."""
    made = import_model(str(folder), project)
    trained, want = restore_run(project.run(made.run), project), np.load(folder / "logits.npz")
    got = jax.jit(outputs_of(trained.task.model))(trained.params, jnp.asarray(want["inputs"]))
    np.testing.assert_allclose(got, want["logits"], atol=BOUND)
    return made
