"""A family, an objective and data that no code of aifx knows: in a project's folder, and as a package of aifx."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import inprocess
import numpy as np
import pytest
import tomli
from stopping import StopAt

import aifx.models
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.core.project import Project
from aifx.kinds import families, load_config
from aifx.parallel.layout import abstract_layout
from aifx.programs.build import build
from aifx.tasks import describe_task
from aifx.training.run import train

TOY = Path(__file__).parent / "toy"
PICTURES = Path(__file__).parents[2] / "templates/vision-inspection/data/fashion_mnist_small.npz"
TRAIN = """\
[train]
num_steps = 12
global_batch_size = 16
gradient_accumulation = 2
validate_every = 4
[checkpoint]
every = 4
[optimizer]
learning_rate = 0.05
"""
OWN = f"""\
[model]
family = "toy:FAMILY"
dropout = 0.1
[objective]
kind = "toy:OBJECTIVE"
delta = 0.5
[data]
kind = "toy:DATA"
{TRAIN}"""
VISION = f"""\
[task]
kind = "vision"
[model]
family = "%s"
{TRAIN}"""


def make_project(root: Path, toml: str) -> Path:
    """A project whose folder holds the toy package."""
    root.mkdir()
    shutil.copytree(TOY, root / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "aifx.toml").write_text(toml)
    return root


def add_pictures(root: Path) -> Path:
    (root / "data").mkdir()
    arrays = np.load(PICTURES)
    np.savez(root / "data/images.npz", **{name: arrays[name][:200] for name in arrays})
    return root


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A project whose three parts are its own."""
    path, modules = list(sys.path), set(sys.modules)
    yield make_project(tmp_path / "waves", OWN)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] == "toy":
            del sys.modules[name]


@pytest.fixture
def bundled_toy(tmp_path: Path) -> Iterator[None]:
    """The toy as a package among those of aifx/models."""
    shutil.copytree(TOY, tmp_path / "models/toy", ignore=shutil.ignore_patterns("__pycache__"))
    aifx.models.__path__.append(str(tmp_path / "models"))
    families.cache_clear()
    yield
    aifx.models.__path__.remove(str(tmp_path / "models"))
    families.cache_clear()
    for name in [name for name in sys.modules if name.startswith("aifx.models.toy")]:
        del sys.modules[name]


def command(project: Path, *args: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    done = inprocess.run(args, project, os.environ, stdin=stdin)
    assert done.returncode == code, done.stderr + done.stdout
    return done


@pytest.mark.representative("a family of one's own")
def test_parts_of_a_projects_own_train_evaluate_and_predict(own: Path) -> None:
    result = json.loads(command(own, "train", "--json").stdout)
    assert (result["status"], result["unit"]) == ("completed", "examples")
    report = json.loads(command(own, "eval", "--json", "--gate", "loss <= 0.2").stdout)
    assert 0 < report["metrics"]["loss"] < 0.2
    rows = "".join(json.dumps({"readings": np.sin(np.arange(8) / 2 + n).tolist()}) + "\n" for n in range(20))
    predicted = [json.loads(line) for line in command(own, "predict", "-", stdin=rows).stdout.splitlines()]
    errors = [abs(row["next"] - np.sin(4 + n)) for n, row in enumerate(predicted)]
    assert len(errors) == 20
    assert np.mean(errors) < 0.6
    short = command(own, "predict", "-", stdin='{"readings": [1, 2]}', code=2)
    assert "-:1: " in short.stderr
    assert "'inputs' float32 [2]" in short.stderr


@pytest.mark.representative("a family of one's own")
def test_baselines_of_the_data_are_measured_beside_the_model(own: Path) -> None:
    command(own, "train")
    report = json.loads(command(own, "eval", "--json", "--set", "eval.batch_size=7").stdout)
    sys.path.insert(0, str(own))
    waves = importlib.import_module("toy.data").Waves
    _, dataset = waves.open(SimpleNamespace(examples=200, noise=0.1), Project(own), own)
    error = np.abs(dataset.splits["test"]["inputs"][:, -1] - dataset.splits["test"]["targets"])
    huber = np.where(error <= 0.5, error**2 / 2, 0.5 * (error - 0.25)).mean()
    assert report["baselines"]["last reading"]["loss"] == pytest.approx(huber, rel=1e-5)
    assert report["metrics"]["loss"] != report["baselines"]["last reading"]["loss"]
    kept = json.loads(next((own / "runs/main/eval").glob("*.json")).read_text())
    assert kept["splits"]["test"]["baselines"] == report["baselines"]
    shown = command(own, "eval").stdout
    assert shown.splitlines()[1].split() == ["metric", "model", "last", "reading"]
    (loss,) = (line.split() for line in shown.splitlines() if line.split()[:1] == ["loss"])
    assert loss[2] == f"{huber:.4f}"


@pytest.mark.slow
def test_a_toy_run_resumes_bit_for_bit(own: Path) -> None:
    project = Project(own)
    config = load_config(project, [], {})
    whole = train(project, config, "whole")
    observer = StopAt(5)
    first = train(project, config, "halved", hooks=[observer], stop=observer.signals)
    assert first.status == "preempted"
    second = train(project, config, "halved")
    assert second.resumed_from == first.step
    assert second.state_digest == whole.state_digest
    assert second.best_validation_loss == whole.best_validation_loss
    runs = [Checkpoints(project.run(name).checkpoints, config.checkpoint) for name in ("whole", "halved")]
    digests = {checkpoints.verify(12).state_digest for checkpoints in runs}
    assert digests == {whole.state_digest}


def test_a_toy_has_programs_without_data_or_devices(own: Path) -> None:
    project = Project(own)
    config = load_config(project, [], {})
    programs = build(config, describe_task(config, project), abstract_layout(4, "cpu", "cpu"))
    assert programs.num_parameters == 8 * 8 + 8 + 8 + 1
    assert programs.train_step.trace()[1].shape == (3,)
    assert not programs.can_decode


@pytest.mark.representative("a family of one's own")
def test_a_family_that_does_not_write(own: Path) -> None:
    command(own, "train")
    failed = command(own, "generate", code=2)
    assert "run main " in failed.stderr
    assert "model.family = 'toy:FAMILY'" in failed.stderr
    assert "does not define decode" in failed.stderr
    quantized = command(own, "eval", "--set", "eval.quantize=int8", code=2)
    assert "model.family = 'toy:FAMILY'" in quantized.stderr


@pytest.mark.slow
def test_a_family_of_the_projects_own_takes_bundled_data(tmp_path: Path) -> None:
    project = add_pictures(make_project(tmp_path / "pictures", VISION % "toy:FAMILY"))
    command(project, "train", "--set", "model.preset=toy-small")
    metrics = json.loads(command(project, "eval", "--json").stdout)["metrics"]
    assert metrics["examples"] == 200
    assert len(metrics["per_class"]) == 10


@pytest.mark.slow
@pytest.mark.usefixtures("bundled_toy")
def test_a_package_in_aifx_models_is_found_by_its_name(tmp_path: Path) -> None:
    project = add_pictures(make_project(tmp_path / "pictures", VISION % "toy"))
    shutil.rmtree(project / "toy")
    shown = tomli.loads(command(project, "config", "show", "--set", "model.preset=toy-small").stdout)
    assert shown["model"] == {"family": "toy", "preset": "toy-small", "width": 4, "dropout": 0.0}
    keys = json.loads(command(project, "config", "keys", "model", "--json").stdout)["keys"]
    found = {key["key"].removeprefix("model.") for key in keys if key["variant"] == "toy"}
    assert found == {"family", "preset", "width", "dropout"}
    schema = json.loads(command(project, "config", "schema").stdout)
    assert schema["$defs"]["model_toy"]["properties"]["preset"]["enum"] == ["toy-small"]
    wrong = command(project, "config", "check", "--set", "model.preset=toy-smal", code=2)
    assert "did you mean 'toy-small'?" in wrong.stderr
    near = command(project, "config", "check", "--set", "model.family=toi", code=2)
    assert "did you mean 'toy'?" in near.stderr
    command(project, "train")
    assert json.loads(command(project, "eval", "--json").stdout)["metrics"]["examples"] == 200
