"""A small language-model project that was really trained, and the real command in it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import inprocess

CONFIG = """\
[data]
vocab_size = 300
seq_len = 32
[model]
num_layers = 2
embed_dim = 16
num_heads = 2
[train]
num_steps = 12
global_batch_size = 8
validate_every = 4
[checkpoint]
every = 4
keep_last = 5
[eval]
gates = ["bits_per_byte <= 9"]
"""
CLASSES_CONFIG = """\
[task]
kind = "vision"
[objective]
threshold_by = "f1"
[model]
channels = [4, 4]
[train]
num_steps = 6
global_batch_size = 32
validate_every = 3
[data]
classes = ["other", "bag", "trousers"]
validation_fraction = 0.4
[checkpoint]
every = 2
keep_last = 5
[eval]
gates = ["balanced_accuracy >= 0", "per_class.bag.average_precision > 0", "auc > 0"]
"""
SENTENCE = "It was the whiteness of the whale that above all things appalled me. "


def aifx(project: Path, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return inprocess.run(args, project, {**os.environ, "AIFX_CACHE_DIR": str(project.parent / "cache")}, stdin=stdin)


def document(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout)  # type: ignore[no-any-return]
