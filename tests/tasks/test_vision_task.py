"""The vision task over real pictures: sums, and the report by class."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from aifx.config import load_config
from aifx.core.project import Project
from aifx.evaluation.held_out import evaluate_split, sum_split
from aifx.specs import init_params, map_specs
from aifx.tasks import create_task
from aifx.tasks.vision import VisionTask, class_report

PICTURES = Path(__file__).parents[2] / "templates/vision-inspection/data/fashion_mnist_small.npz"


@pytest.fixture
def task(tmp_path: Path) -> VisionTask:
    (tmp_path / "data").mkdir()
    arrays = np.load(PICTURES)
    np.savez(tmp_path / "data/images.npz", **{k: arrays[k][:50] for k in arrays})
    (tmp_path / "aifx.toml").write_text("[task]\nkind = 'vision'\n[model]\nchannels = [4, 4]\n")
    project = Project(tmp_path)
    config = load_config(project, ["train.global_batch_size=16"], {})
    made = create_task(config, project, tmp_path / "assets")
    assert isinstance(made, VisionTask)
    return made


def test_sums_are_what_numpy_makes_of_all_logits_at_once(task: VisionTask) -> None:
    params = init_params(task.model.specs(), jax.random.key(0))
    images, labels = task.data.images["test"], task.data.labels["test"]
    logits = np.asarray(jax.jit(task.model)(params, images), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    predicted = logits.argmax(-1)
    totals = sum_split(task, params, "test")
    assert totals["loss"] == pytest.approx((-log_probs[np.arange(50), labels].sum(), 50), rel=1e-5)
    metrics = evaluate_split(task, params, "test")
    assert metrics["accuracy"] == np.mean(predicted == labels)
    assert metrics["images"] == 50  # the rows that fill the last batch count nothing
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert metrics["confusion"] == confusion.tolist()
    assert list(metrics["per_class"]) == list(task.data.classes)


def test_report_by_class() -> None:
    report = class_report(np.array([[3.0, 1, 0], [2, 2, 0], [0, 0, 0]]), ("cat", "dog", "emu"))
    assert report["per_class"]["cat"] == {"precision": 0.6, "recall": 0.75, "f1": pytest.approx(2 / 3), "images": 4}
    assert report["per_class"]["dog"] == {
        "precision": pytest.approx(2 / 3),
        "recall": 0.5,
        "f1": pytest.approx(4 / 7),
        "images": 4,
    }
    assert report["per_class"]["emu"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 0}
    assert report["images"] == 8


def test_training_sums_no_confusion(task: VisionTask) -> None:
    params = map_specs(lambda spec: spec.struct, task.model.specs())
    batch = task.source("train").read(0, slice(0, 16))
    sums = jax.eval_shape(partial(task.objective, training=True), params, batch, jax.random.key(0))
    assert set(sums) == {"loss", "accuracy"}
    assert task.units(batch) == 16
    assert task.batch_shape() == (16, 28, 28, 1)
