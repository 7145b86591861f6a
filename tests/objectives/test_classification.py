"""Classification of real pictures: sums, and the report by class."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from aifx.config import load_config
from aifx.core.project import Project
from aifx.data.arrays import ArrayDataset
from aifx.evaluation.held_out import evaluate_split
from aifx.objectives.classification import class_report
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import local_layout
from aifx.programs.build import Programs, build
from aifx.specs import init_params, map_specs
from aifx.tasks import open_task
from aifx.tasks.base import training_source

PICTURES = Path(__file__).parents[2] / "templates/vision-inspection/data/fashion_mnist_small.npz"


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    (tmp_path / "data").mkdir()
    arrays = np.load(PICTURES)
    np.savez(tmp_path / "data/images.npz", **{k: arrays[k][:50] for k in arrays})
    (tmp_path / "aifx.toml").write_text("[task]\nkind = 'vision'\n[model]\nchannels = [4, 4]\n")
    project = Project(tmp_path)
    config = load_config(project, ["train.global_batch_size=16"], {})
    return build(config, open_task(config, project, tmp_path / "assets"), local_layout())


def pictures_of(programs: Programs) -> ArrayDataset:
    assert isinstance(programs.task.dataset, ArrayDataset)
    return programs.task.dataset


def test_sums_are_what_numpy_makes_of_all_logits_at_once(programs: Programs) -> None:
    params, ctx = init_params(programs.specs, jax.random.key(0)), ForwardContext(programs.layout)
    images, labels = (pictures_of(programs).splits["test"][name] for name in ("inputs", "targets"))
    hidden = jax.jit(lambda params: programs.model.hidden(params, {"inputs": images}, ctx))(params)
    logits = np.asarray(programs.model.head(params, ctx)(hidden), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    predicted = logits.argmax(-1)
    metrics = evaluate_split(programs, params, {}, "test")
    assert metrics["loss"] == pytest.approx(-log_probs[np.arange(50), labels].sum() / 50, rel=1e-5)
    assert metrics["accuracy"] == np.mean(predicted == labels)
    assert metrics["examples"] == 50  # the rows that fill the last batch count nothing
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert metrics["confusion"] == confusion.tolist()
    assert list(metrics["per_class"]) == list(programs.task.data.classes)


def test_report_by_class() -> None:
    report = class_report(np.array([[3.0, 1, 0], [2, 2, 0], [0, 0, 0]]), ("cat", "dog", "emu"))
    cat, dog = ({"f1": pytest.approx(f1), "examples": 4} for f1 in (2 / 3, 4 / 7))
    assert report["per_class"]["cat"] == {"precision": 0.6, "recall": 0.75, **cat}
    assert report["per_class"]["dog"] == {"precision": pytest.approx(2 / 3), "recall": 0.5, **dog}
    assert report["per_class"]["emu"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "examples": 0}
    assert report["examples"] == 8


def test_training_sums_no_confusion(programs: Programs) -> None:
    params, ctx = map_specs(lambda spec: spec.struct, programs.specs), ForwardContext(programs.layout, training=True)
    batch = training_source(programs.task, programs.config).read(0, slice(0, 16))
    sums = jax.eval_shape(lambda params: programs.objective.sums(programs.model, params, batch, ctx), params)
    assert set(sums) == {"loss", "accuracy"}
    assert programs.objective.unit == "examples"
    assert pictures_of(programs).counts(batch) == {"examples": 16}
