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

from aifx.kinds import load_config
from aifx.core.project import Project
from aifx.parallel.layout import local_layout
from aifx.programs.build import build
from aifx.programs.state import initial_state
from aifx.tasks.base import training_source
from aifx.tasks.registry import open_task

project, layout = Project(Path.cwd()), local_layout()
config = load_config(project, [], {})
task = open_task(config, project, Path.cwd())
programs = build(config, task, layout)
state, frozen = jax.jit(lambda: initial_state(programs.specs, programs.optimizer, config.train.seed))()
step, source = jax.jit(lambda *arguments: programs.step(*arguments)), training_source(task, config)
losses = []
for number in range(config.train.num_steps):
    batch = source.read(number, slice(0, config.train.global_batch_size))
    state, numbers = step(state, frozen, programs.place(batch))
    losses.append(float(numbers[0]))
print(json.dumps(losses))
"""


@pytest.mark.slow
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
