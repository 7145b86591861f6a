"""Classification of real pictures: sums, and the report by class."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from aifx.core.project import Project
from aifx.data.arrays import ArrayDataset
from aifx.data.spec import DataSpec
from aifx.evaluation.held_out import evaluate_split
from aifx.kinds import load_config
from aifx.objectives.base import Rows
from aifx.objectives.classification import Classification
from aifx.objectives.sections import ClassificationSection
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


CLASSES = ("cat", "dog", "emu")
SPEC = DataSpec({}, classes=CLASSES)


def report_of(labels, logits, weights=None, *, objective=None):
    """The report on examples with these labels and logits, which both may be NumPy's."""
    weights = np.ones(len(labels), np.float32) if weights is None else weights
    rows = {"logits": Rows(np.asarray(logits, np.float32), weights), "labels": Rows(np.asarray(labels), weights)}
    return (objective or Classification()).metrics({"loss": (1.0, 1.0), **rows}, SPEC)


def test_report_by_class():
    predicted = np.array([0, 0, 0, 1, 0, 0, 1, 1, 2])
    weights = np.array([1.0] * 8 + [0.0], np.float32)  # the last row fills the batch
    report = report_of([0, 0, 0, 0, 1, 1, 1, 1, 2], np.eye(3)[predicted], weights)
    cat, dog, emu = (report["per_class"][name] for name in CLASSES)
    assert (cat["precision"], cat["recall"], cat["examples"]) == (0.6, 0.75, 4)
    assert (dog["f1"], dog["recall"]) == (pytest.approx(4 / 7), 0.5)
    assert {name: emu[name] for name in ("precision", "recall", "f1", "examples")} == {
        "precision": 0.0, "recall": 0.0, "f1": 0.0, "examples": 0
    }  # fmt: skip
    assert np.isnan(emu["auc"])
    assert np.isnan(emu["average_precision"])
    assert report["accuracy"] == 5 / 8
    assert report["balanced_accuracy"] == 5 / 8  # over the classes that occur
    assert report["auc"] == pytest.approx(5 / 8)  # cat: (3 * 2 + (1 * 2 + 3 * 2) / 2) / 16, and dog alike
    assert report["macro_f1"] == pytest.approx((2 / 3 + 4 / 7) / 3)
    assert report["examples"] == 8
    assert report["confusion"] == [[3, 1, 0], [2, 2, 0], [0, 0, 0]]


def test_thresholds_find_a_rare_class_that_the_likeliest_one_hides():
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.05).astype(int)
    # A calibrated model of two classes: the rare one is hardly ever the likelier.
    evidence = rng.normal(size=2000) + 1.5 * labels
    rare = np.log(0.05 / 0.95) + 1.5 * evidence - 1.5**2 / 2
    logits = np.stack([np.zeros(2000), rare, np.full(2000, -30.0)], axis=-1)
    plain = report_of(labels, logits)
    chosen = report_of(
        labels, logits, objective=Classification(ClassificationSection(threshold_by="balanced_accuracy"))
    )
    assert "threshold" not in plain["per_class"]["dog"]
    assert plain["per_class"]["dog"]["recall"] < 0.3 < 0.6 < chosen["per_class"]["dog"]["recall"]
    assert chosen["balanced_accuracy"] > plain["balanced_accuracy"] + 0.15
    assert {name: chosen[name] for name in ("auc", "average_precision")} == {
        name: plain[name] for name in ("auc", "average_precision")
    }
    assert sum(report["threshold"] for report in chosen["per_class"].values()) == pytest.approx(1)


def test_thresholds_are_those_that_are_fixed_once_they_are():
    objective = Classification(ClassificationSection(threshold_by="f1"))
    report = report_of([0, 1, 1], [[2, 1, 0], [1, 2, 0], [2, 1, 0]], objective=objective)
    chosen = objective.thresholds(report)
    assert set(chosen) == set(CLASSES)
    fixed = objective.with_thresholds({"cat": 0.9, "dog": 0.1, "emu": 1 / 3})
    other = report_of([0, 1, 1], [[2, 1, 0], [1, 2, 0], [2, 1, 0]], objective=fixed)
    assert fixed.thresholds(other) == {"cat": 0.9, "dog": 0.1, "emu": 1 / 3}
    assert other["confusion"] == [[0, 1, 0], [0, 2, 0], [0, 0, 0]]
    likely_cat = {"probabilities": np.array([[0.6, 0.3, 0.1]], np.float32)}
    assert fixed.decode(likely_cat, SPEC)["label"] == "dog"
    assert fixed.decode(likely_cat, SPEC)["probability"] == pytest.approx(0.3)
    assert objective.decode(likely_cat, SPEC)["label"] == "cat"
    assert objective.thresholds(report) == chosen  # the objective itself is unchanged


def test_a_model_that_diverged_has_a_report():
    report = report_of([0, 1], np.full((2, 3), np.nan))
    assert np.isnan(report["auc"])
    assert report["accuracy"] == 0.5


@pytest.mark.slow
def test_labels_are_smoothed_in_training_alone(programs: Programs) -> None:
    params = init_params(programs.specs, jax.random.key(0))
    batch = training_source(programs.task, programs.config).read(0, slice(0, 16))
    plain, smooth = (Classification(ClassificationSection(label_smoothing=share)) for share in (0.0, 0.5))

    def loss(objective: Classification, *, training: bool) -> float:
        ctx = ForwardContext(programs.layout, training=training)
        return float(jax.jit(lambda params: objective.sums(programs.model, params, batch, ctx)["loss"][0])(params))

    assert loss(smooth, training=False) == loss(plain, training=False) == loss(plain, training=True)
    assert loss(smooth, training=True) != loss(plain, training=True)


def test_training_sums_the_loss_alone(programs: Programs) -> None:
    params, ctx = map_specs(lambda spec: spec.struct, programs.specs), ForwardContext(programs.layout, training=True)
    batch = training_source(programs.task, programs.config).read(0, slice(0, 16))
    sums = jax.eval_shape(lambda params: programs.objective.sums(programs.model, params, batch, ctx), params)
    assert set(sums) == {"loss"}
    assert programs.objective.unit == "examples"
    assert pictures_of(programs).counts(batch) == {"examples": 16}
