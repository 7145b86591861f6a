"""A small language-model project that was really trained, and the real command in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = [sys.executable, "-c", "import sys; from aifx.commands.main import run; sys.exit(run(sys.argv[1:]))"]
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
SENTENCE = "It was the whiteness of the whale that above all things appalled me. "


def aifx(project: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "AIFX_CACHE_DIR": str(project.parent / "cache")}
    return subprocess.run([*PROGRAM, *args], cwd=project, env=environ, capture_output=True, text=True, check=False)


def document(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout)  # type: ignore[no-any-return]
