"""A run on a mesh: trained, resumed on another one, evaluated, predicted with and asked to write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from small_language import write_project

PROGRAM = """
import json, sys
from pathlib import Path
import jax, numpy as np
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.core.project import Project
from aifx.loading.restore import restore_run
from aifx.evaluation.held_out import evaluate
from aifx.serving.generate import write_text
from aifx.loading.prediction import LoadedModel
from aifx.kinds import load_config
from aifx.training import restore
from aifx.training.hook import Hook
from aifx.training.run import train
from aifx.core.stop_signals import StopSignals

class StopAt4(Hook):
    signals = StopSignals()

    def on_record(self, record):
        self.signals.requested = 15 if record.step == 4 else self.signals.requested

project, found = Project(Path.cwd()), {}
observer = StopAt4()
first = train(project, load_config(project, [], {}), "main", hooks=[observer], stop=observer.signals)
result = train(project, load_config(project, ["mesh.fsdp=8", "mesh.tensor=1"], {}), "main")
run = project.run("main")
for name, overrides in json.load(sys.stdin).items():
    trained = restore_run(run, project, overrides=overrides)
    report = evaluate(run, project, split="validation", overrides=overrides)
    settings = trained.config.generate.model_copy(update={"prompt": "the ", "max_tokens": 8, "temperature": 0.0})
    found[name] = {
        "mesh": str(trained.layout.degrees),
        "most": max(s.data.nbytes for s in trained.params["embedding"]["token"].addressable_shards),
        "loss": report.metrics["loss"],
        "bytes": report.metrics["bytes"],
        "text": "".join(write_text(trained, settings)),
        "predicted": [p["loss"] for p in LoadedModel(trained).predict(
            [{"text": "the cat sat on the mat"}, {"text": "ab"}, {"text": "the dog"}])],
    }
base = {}
with_base_weights, read = restore.with_base_weights, Checkpoints.read

def largest(array):
    return max(shard.data.nbytes for shard in array.addressable_shards)

def look_at_read(*asked):
    arrays = read(*asked)
    base["most read"] = largest(arrays["params/embedding/token"])
    return arrays

def look(state, programs, *where):
    begun = with_base_weights(state, programs, *where)
    params = restore_run(run, project, step="best").params
    base["mesh"] = str(programs.layout.degrees)
    base["is_equal"] = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), begun.params, params)
    base["most"] = largest(begun.params["embedding"]["token"])
    return begun

restore.with_base_weights, Checkpoints.read = look, look_at_read
settings = ["finetune.base=main", "train.num_steps=1", "mesh.fsdp=8", "mesh.tensor=1"]
train(project, load_config(project, settings, {}), "fine")
json.dump({"stopped_at": first.step, "resumed_from": result.resumed_from, "found": found, "base": base}, sys.stdout)
"""
pytestmark = pytest.mark.slow
ONE = ["train.devices=1", "mesh.fsdp=1", "mesh.tensor=1"]
LAYOUTS = {
    "one": ONE,
    "as it was trained": [],
    "odd": ["eval.batch_size=3"],
    "data=2 x fsdp=2 x tensor=2": ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"],
    "context=2": ["mesh.fsdp=4", "mesh.tensor=1", "mesh.context=2"],
    "more than there are": ["train.devices=64", "mesh.fsdp=64", "mesh.tensor=1"],
}
MESH = """\
num_kv_heads = 2
[mesh]
fsdp = 4
tensor = 2
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("mesh")
    write_project(root, MESH, num_steps=8, validate_every=4)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=root,
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        },
        input=json.dumps(LAYOUTS),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return root, json.loads(done.stdout)


def test_a_run_resumes_on_another_mesh_and_says_so(used: tuple[Path, dict[str, Any]]) -> None:
    root, found = used
    assert found["resumed_from"] == found["stopped_at"] < 8
    events = [json.loads(line) for line in (root / "runs/main/events.jsonl").read_text().splitlines()]
    (changed,) = (event for event in events if event["event"] == "settings_changed")
    assert {"key": "mesh.fsdp", "old": 4, "new": 8} in changed["changes"]
    assert "last bits" in (root / "runs/main/train.log").read_text()


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "one"])
def test_a_model_is_the_same_on_every_mesh(used: tuple[Path, dict[str, Any]], name: str) -> None:
    many, one = used[1]["found"][name], used[1]["found"]["one"]
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert many["bytes"] == one["bytes"]
    assert many["text"] == one["text"]
    assert many["predicted"] == pytest.approx(one["predicted"], rel=1e-6)


def test_no_device_holds_a_whole_model_that_a_mesh_divides(used: tuple[Path, dict[str, Any]]) -> None:
    found = used[1]["found"]
    assert found["as it was trained"]["mesh"] == "fsdp=8"
    assert found["as it was trained"]["most"] * 8 == found["one"]["most"]
    assert found["more than there are"]["mesh"] == "fsdp=8"


def test_a_base_run_is_read_divided(used: tuple[Path, dict[str, Any]]) -> None:
    """Onto another mesh than it was trained on, into the arrays of the new run."""
    base, one = used[1]["base"], used[1]["found"]["one"]
    assert base["mesh"] == "fsdp=8"
    assert base["most read"] * 8 == base["most"] * 8 == one["most"]
    assert all(jax.tree.leaves(base["is_equal"]))
