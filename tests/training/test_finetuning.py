"""Runs that begin with an earlier run's weights: whole models and heads alone, exact across a resume."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
from stopping import StopAt

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import CheckpointError, ConfigError, UsageError
from aifx.core.project import Project
from aifx.evaluation.held_out import evaluate
from aifx.kinds import load_config
from aifx.runs.binding import weights_digest
from aifx.training.run import train

PICTURES = Path(__file__).parents[2] / "templates/vision-inspection/data/fashion_mnist_small.npz"
CONFIG = """\
[task]
kind = "vision"
[data]
path = "data/{}.npz"
[model]
channels = [6]
[train]
num_steps = 4
global_batch_size = 16
validate_every = 2
[checkpoint]
every = 2
keep_last = 9
"""
HEAD = {"output/weight", "output/bias"}
FROZEN = ("finetune.freeze=backbone",)


@pytest.fixture(scope="session")
def based(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run "base" knows ten classes, and data of two others, of which the run "whole" learned its head.

    Not to be changed.
    """
    root = tmp_path_factory.mktemp("finetuning") / "project"
    (root / "data").mkdir(parents=True)
    few = {name: values[:150] for name, values in np.load(PICTURES).items()}
    np.savez(root / "data/ten.npz", **few)
    np.savez(root / "data/two.npz", **{name: v % 2 if "labels" in name else v for name, v in few.items()})
    (root / "aifx.toml").write_text(CONFIG.format("ten"))
    train(Project(root), load_config(Project(root), [], {}), "base")
    (root / "aifx.toml").write_text(CONFIG.format("two") + '[finetune]\nbase = "base"\n')
    finetune(Project(root), *FROZEN, run="whole")
    return root


@pytest.fixture
def project(based: Path, tmp_path: Path) -> Project:
    return Project(Path(shutil.copytree(based, tmp_path / "project")))


def finetune(project: Project, *settings: str, run: str = "fine", **options: Any) -> Any:
    return train(project, load_config(project, settings, {}), run, **options)


def arrays(project: Project, run: str, step: int) -> dict[str, np.ndarray]:
    """The parameters of a checkpoint by name."""
    folder = project.run(run).checkpoints
    entries = read_manifest(folder / str(step)).arrays
    wanted = {n: np.empty(e.shape, e.dtype) for n, e in entries.items() if n.startswith("params/")}
    read = Checkpoints(folder, load_config(project, [], {}).checkpoint).read(step, wanted)
    return {name.removeprefix("params/"): np.asarray(values) for name, values in read.items()}


@pytest.mark.slow
def test_weights_of_the_base_run_become_the_type_of_the_new_one(project: Project) -> None:
    result = finetune(project, *FROZEN, "train.parameter_dtype=bfloat16", "optimizer.ema_decay=0.9")
    before, after = arrays(project, "base", best_of(project, "base")), arrays(project, "fine", result.step)
    for name in after.keys() - HEAD:
        np.testing.assert_array_equal(before[name].astype(after[name].dtype), after[name])
    assert {after[name].dtype.name for name in HEAD} == {"bfloat16"}
    found = read_manifest(project.run("fine").checkpoints / str(result.step)).arrays
    assert {entry.dtype for name, entry in found.items() if name.startswith("ema/")} == {"float32"}
    assert np.isfinite(evaluate(project.run("fine"), project, split="validation").metrics["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_frozen_backbone_is_that_of_the_base_run(project: Project, kind: str, logged: list[str]) -> None:
    result = finetune(project, *FROZEN, f"optimizer.kind={kind}")
    before, after = arrays(project, "base", best_of(project, "base")), arrays(project, "fine", result.step)
    assert {name for name in after if not np.array_equal(before[name], after[name])} == HEAD
    assert after["output/weight"].shape == (6, 2)
    first = arrays(project, "fine", 2)
    assert {name for name in after if not np.array_equal(first[name], after[name])} == HEAD
    names = read_manifest(project.run("fine").checkpoints / str(result.step)).arrays
    states = {name.rpartition("/mu/")[2] for name in names if name.startswith("opt_state/") and "/mu/" in name}
    assert states == HEAD
    assert [line for line in logged if re.search(r"head.*output/bias.*\[2\].*\[10\]", line)]


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(project: Project) -> None:
    events = [json.loads(line) for line in project.run("whole").events.read_text().splitlines()]
    stop = StopAt(2)  # is heard of during step 3
    finetune(project, *FROZEN, hooks=[stop], stop=stop.signals)
    shutil.rmtree(project.run("base").path)  # a run that began needs its base no longer
    resumed = finetune(project, *FROZEN)
    assert (resumed.resumed_from, resumed.state_digest) == (3, events[-1]["state_digest"])
    report = evaluate(project.run("fine"), project)
    assert report.metrics["examples"] == 150


@pytest.mark.slow
def test_without_freezing_all_weights_go_on_from_the_checkpoint_that_the_provenance_names(project: Project) -> None:
    result = finetune(project, "optimizer.learning_rate=1e-9", "optimizer.weight_decay=0")
    before, after = arrays(project, "base", best_of(project, "base")), arrays(project, "fine", result.step)
    for name in after.keys() - HEAD:
        np.testing.assert_allclose(before[name], after[name], atol=1e-6)
    assert any(not np.array_equal(before[name], after[name]) for name in after.keys() - HEAD)
    step = best_of(project, "base")
    digest = weights_digest(read_manifest(project.run("base").checkpoints / str(step)))
    provenance = json.loads(project.run("fine").provenance.read_text())
    assert provenance["finetuned_from"] == {"run": "base", "step": step, "digest": digest}
    assert provenance["forked_from"] is None
    finetune(project, "train.num_steps=6", run="fork", fork_from="fine")
    fork = json.loads(project.run("fork").provenance.read_text())
    assert (fork["forked_from"], fork["finetuned_from"]) == ("fine", provenance["finetuned_from"])


@pytest.mark.slow
def test_the_head_of_other_classes_starts_anew(project: Project, logged: list[str]) -> None:
    """As many classes as the base run has, with other names, for which its head is not trained."""
    with np.load(project.root / "data/ten.npz") as images:
        np.savez(project.root / "data/two.npz", **images)
    still = ("optimizer.learning_rate=1e-9", "optimizer.weight_decay=0", "train.seed=1")  # other first values
    finetune(project, *still, run="same")
    finetune(project, *still, f"data.classes={json.dumps(list('abcdefghij'))}", run="other")
    base, same, other = (arrays(project, run, best_of(project, run)) for run in ("base", "same", "other"))
    for name in base:
        np.testing.assert_allclose(base[name], same[name], atol=1e-6)
    for name in base.keys() - HEAD:
        np.testing.assert_allclose(base[name], other[name], atol=1e-6)
    assert np.abs(base["output/weight"] - other["output/weight"]).max() > 0.01
    assert any("output/weight" in line and "other classes" in line for line in logged)


@pytest.mark.slow
def test_another_backbone_is_refused(project: Project) -> None:
    with pytest.raises(ConfigError) as caught:
        finetune(project, "model.channels=[8]")
    assert "--set: model.channels = [8], and run base has [6]" in caught.value.why
    assert "channels = [6]" in caught.value.hint
    toml = (project.root / "aifx.toml").read_text()
    (project.root / "aifx.toml").write_text(toml.replace("channels = [6]", 'family = "vit"\nembed_dim = 32'))
    with pytest.raises(ConfigError) as caught:
        finetune(project)
    assert "embedding/patch is [16, 32]" in caught.value.why
    assert "finetune.base" in caught.value.what


@pytest.mark.slow
def test_base_runs_that_cannot_be_used(project: Project) -> None:
    with pytest.raises(UsageError, match="no run 'basis'"):
        finetune(project, "finetune.base=basis")
    with pytest.raises(ConfigError, match="is this run"):
        finetune(project, "finetune.base=fine")
    checked = inprocess.run(["config", "check", "--set", "finetune.base=bases"], project.root, os.environ)
    assert checked.returncode == 2
    assert "did you mean 'base'?" in checked.stderr
    assert 'hint: base = "base"' in checked.stderr
    checked = inprocess.run(["config", "check", "--set", "finetune.base=base:77"], project.root, os.environ)
    assert re.search("run base .*step 77", checked.stderr)
    shutil.rmtree(project.run("base").checkpoints)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        finetune(project)
    (project.root / "aifx.toml").write_text(CONFIG.format("two"))
    with pytest.raises(ConfigError, match=r"finetune\.freeze = 'backbone'.*finetune\.base"):
        finetune(project, "finetune.freeze=backbone")


def best_of(project: Project, run: str) -> int:
    step = Checkpoints(project.run(run).checkpoints, load_config(project, [], {}).checkpoint).best()
    assert step is not None
    return step
