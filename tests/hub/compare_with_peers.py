"""Imported models beside transformers, which made them: `make test-peers` runs this after their `make`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from adapter_runs import logits_of, make_adapter_run
from picture_runs import assert_same_logits
from safetensors.numpy import load_file
from written import write_tokens

from aifx.core.project import Project
from aifx.hub.exporting import export_model
from aifx.hub.importing import import_model
from aifx.hub.peft import ADAPTER, export_adapter
from aifx.loading.restore import restore_run
from aifx.parallel.context import ForwardContext

FOLDER = Path("build/peers").absolute()
MODELS = sorted((FOLDER / "imported").iterdir())
PICTURES = sorted((FOLDER / "pictures").iterdir())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("project")
    (root / "aifx.toml").write_text("")
    return Project(root)


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_logits_and_greedy_text(folder, project):
    made = import_model(str(folder), project)
    trained = restore_run(project.run(made.run), project)
    want, model, ctx = np.load(folder / "logits.npz"), trained.task.model, ForwardContext(trained.layout)
    hidden = model.hidden(trained.params, {"inputs": jnp.asarray(want["inputs"], jnp.int32)}, ctx)
    got = np.asarray(model.head(trained.params, ctx)(hidden)).reshape(want["logits"].shape)
    np.testing.assert_allclose(got, want["logits"], atol=5e-4)
    programs, *arrays = trained.programs("none")
    decoding = programs.as_decoding(*arrays)
    for row, greedy, gaps in zip(want["inputs"], want["greedy"], want["gaps"], strict=True):
        count = int(np.logical_and.accumulate(gaps > 1e-3).sum())  # after a near tie the texts may differ
        written = list(write_tokens(*decoding, row.tolist(), max_tokens=len(gaps), temperature=0.0))
        assert written[:count] == greedy[:count].tolist()
    exported = FOLDER / "exported" / folder.name
    exported.parent.mkdir(exist_ok=True)
    export_model(exported, project.run(made.run), project)
    shutil.copyfile(folder / "logits.npz", exported / "logits.npz")  # what transformers is to compute of it again
    run = make_adapter_run(project, project.run(made.run), name=f"{made.run}-adapted")
    adapter = FOLDER / "adapters" / folder.name
    adapter.parent.mkdir(exist_ok=True)
    export_adapter(adapter, run, project)
    np.savez(adapter / "logits.npz", logits=logits_of(restore_run(run, project)))
    (adapter / "keys.json").write_text(json.dumps(list(load_file(adapter / ADAPTER))))


@pytest.mark.parametrize("folder", PICTURES, ids=lambda folder: folder.name)
def test_logits_of_pictures(folder, project):
    assert_same_logits(folder, project)
