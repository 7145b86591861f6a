"""No flag of XLA that aifx sets changes a result: a run's steps against those of plain `jax.jit` without any."""

import json
import os
import subprocess
import sys

import pytest

PLAIN = """
import json, sys
from pathlib import Path

import jax

from aifx.config import load_config
from aifx.parallel import make_mesh, place_batch
from aifx.core.project import Project
from aifx.tasks.registry import create_task
from aifx.training.state import initial_state
from aifx.training.step import make_step_spec, make_step

project, mesh = Project(Path.cwd()), make_mesh()
config = load_config(project, [], {})
step_spec = make_step_spec(config, create_task(config, project, Path.cwd()), mesh)
state = jax.jit(lambda: initial_state(step_spec.specs, step_spec.optimizer, step_spec.seed))()
step, source = jax.jit(make_step(step_spec)), step_spec.task.source("train")
losses = []
for number in range(config.train.num_steps):
    state, numbers = step(state, place_batch(source.read(number, slice(0, config.train.global_batch_size)), mesh))
    losses.append(float(numbers[0]))
print(json.dumps(losses))
"""


def test_a_run_is_what_plain_jit_computes(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    run = tiny.start("train", "--json")
    environ = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    plain = subprocess.run([sys.executable, "-c", PLAIN], cwd=tiny.root, env=environ, capture_output=True, text=True)
    assert plain.returncode == 0, plain.stderr
    run.communicate()
    assert run.returncode == 0
    assert [record["loss"] for record in tiny.records()] == json.loads(plain.stdout)
