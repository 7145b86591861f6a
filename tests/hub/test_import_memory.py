"""An import holds less than the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import peer_models
import pytest
from safetensors.numpy import save_file

EMBED, LAYERS, VOCAB = 512, 24, 16_000

CODE = """
import resource, sys
from pathlib import Path
import jax.numpy
from aifx.core.project import Project
from aifx.hub.importing import import_model
import aifx.checkpoint.writing, tensorstore
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
made = import_model(sys.argv[1], Project(Path(sys.argv[2])))
print(peak() - before, made.size_bytes)
"""


@pytest.mark.slow
def test_an_import_takes_less_memory_than_the_model(tmp_path):
    folder, project = tmp_path / "large", tmp_path / "project"
    folder.mkdir()
    project.mkdir()
    (project / "aifx.toml").write_text("")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": EMBED,
              "intermediate_size": 4 * EMBED, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
              "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "max_position_embeddings": 256,
              "tie_word_embeddings": True}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    peer_models.write_tokenizer(folder)
    norm, square, wide = (np.ones(shape, np.float32) for shape in (EMBED, (EMBED, EMBED), (4 * EMBED, EMBED)))
    tensors = {"model.embed_tokens.weight": np.ones((VOCAB, EMBED), np.float32), "model.norm.weight": norm}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        tensors |= {f"{layer}.self_attn.{letter}_proj.weight": square for letter in "qkvo"}
        tensors |= {f"{layer}.mlp.{name}_proj.weight": wide for name in ("gate", "up")}
        tensors |= {f"{layer}.mlp.down_proj.weight": np.ascontiguousarray(wide.T)}
        tensors |= {f"{layer}.{name}_layernorm.weight": norm for name in ("input", "post_attention")}
    save_file({key: value.copy() for key, value in tensors.items()}, folder / "model.safetensors")
    arguments = [sys.executable, "-c", CODE, str(folder), str(project)]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True, env={**os.environ})
    grown, size = map(int, ended.stdout.split())
    assert size > 400e6
    assert grown < size / 2
