"""Vectors of a run's model: the pooled hidden states of each text alone, and indexes that belong to a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from inprocess import run

from aifx.core.project import Project
from aifx.loading.restore import restore_run
from aifx.parallel.context import ForwardContext
from aifx.search.model_embedders import RunEmbedder

pytestmark = pytest.mark.slow

CONFIG = """
[data]
train = ["book.txt"]
seq_len = 32
tokenizer = "byte"
[model]
num_layers = 2
embed_dim = 24
num_heads = 2
max_seq_len = 64
[train]
global_batch_size = 4
num_steps = 2
[optimizer]
learning_rate = 0.05
[schedule]
warmup_steps = 0
[checkpoint]
every = 1
keep_last = 10
[eval]
checkpoint = "last"
"""
TEXTS = ["the whale", "a", "Call me Ishmael. Some years ago, never mind", None, "  ", "sea " * 40]


def aifx(folder: Path, *args: str) -> CompletedProcess[str]:
    return run(args, folder, dict(os.environ))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "aifx.toml").write_text(CONFIG)
    (folder / "book.txt").write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 40)
    written = [text for text in TEXTS if text and text.strip()]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in written))
    done = aifx(folder, "train", "--run", "main")
    assert done.returncode == 0, done.stderr
    assert aifx(folder, "data", "add", "corpus", "texts.jsonl", "--license", "MIT").returncode == 0
    return folder


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_pooled_hidden_states(project: Path, pooling: str) -> None:
    config = project / "aifx.toml"
    config.write_text(f'{CONFIG}\n[serve]\npooling = "{pooling}"\n')
    embedder = RunEmbedder("main", Project(project))
    config.write_text(CONFIG)
    assert embedder.record.name == "main@2"
    trained = restore_run(Project(project).run("main"), Project(project))
    programs, params, _ = trained.programs("none")
    model, tokenizer = programs.model, trained.task.format.tokenizer  # type: ignore[union-attr]
    for text, vector in zip(TEXTS, embedder.embed(pa.array(TEXTS)), strict=True):
        if text is None or not text.strip():
            assert not vector.any()
            continue
        ids = jnp.asarray([tokenizer.encode_prompt(text)[:64]])
        hidden = np.asarray(model.hidden(params, {"inputs": ids}, ForwardContext(trained.layout)), np.float64)
        wanted = hidden.mean(0) if pooling == "mean" else hidden[-1]
        np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_an_index_belongs_to_a_checkpoint(project: Path) -> None:
    done = aifx(project, "data", "index", "corpus", "--embedder", "main@1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["index"]["embedder"]["name"] == "main@1"
    done = aifx(project, "data", "search", "corpus", "the whale", "--top", "1", "--json")
    (hit,) = json.loads(done.stdout)["queries"][0]["hits"]
    assert hit["text"] == "the whale"
    assert hit["score"] == pytest.approx(1, abs=1e-5)
    refused = aifx(project, "data", "search", "corpus", "the whale", "--embedder", "main")
    assert refused.returncode == 2
    assert "step is 1" in refused.stderr
    refused = aifx(project, "data", "index", "corpus", "--embedder", "man")
    assert "no embedder 'man'" in refused.stderr
    shutil.rmtree(project / "runs/main/checkpoints/1")
    gone = aifx(project, "data", "search", "corpus", "the whale")
    assert gone.returncode == 2
    assert "checkpoint" in gone.stderr
