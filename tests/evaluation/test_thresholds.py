"""Thresholds of classes: chosen on the validation split, kept with the checkpoint, used by eval and predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trained_project import aifx

import aifx as library
from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.kinds import load_config

pytestmark = pytest.mark.representative("an evaluation")  # they share a training that costs seconds


def thresholds_at(root: Path, step: int) -> dict[str, float]:
    host = read_manifest(root / f"runs/main/checkpoints/{step}").host
    return host["progress"]["thresholds"]  # type: ignore[no-any-return]


def test_a_checkpoint_keeps_those_of_the_last_validation(classified: Path) -> None:
    records = [json.loads(line) for line in (classified / "runs/main/metrics.jsonl").read_text().splitlines()]
    validated = {r["step"]: r["validation"]["per_class"] for r in records if r.get("validation")}
    for step, of in ((3, 3), (4, 3), (6, 6)):
        assert thresholds_at(classified, step) == {name: report["threshold"] for name, report in validated[of].items()}
    assert thresholds_at(classified, 2) == {}
    assert thresholds_at(classified, 6) != thresholds_at(classified, 3)


@pytest.mark.slow
def test_eval_and_predict_use_them(classified: Path) -> None:
    done = aifx(classified, "eval", "--step", "6", "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    kept = thresholds_at(classified, 6)
    assert {name: report["threshold"] for name, report in metrics["per_class"].items()} == kept
    names = list(kept)
    labels = np.load(classified / "data/images.npz")["test_labels"]
    predicted = list(library.load(classified / "runs/main", step=6).predict_files(classified / "data/images.npz"))
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (labels, [names.index(p["label"]) for p in predicted]), 1)
    assert metrics["confusion"] == confusion.tolist()
    by_ratio = [max(names, key=lambda name: p["probabilities"][name] / kept[name]) for p in predicted]
    assert [p["label"] for p in predicted] == by_ratio
    likeliest = [max(p["probabilities"], key=p["probabilities"].get) for p in predicted]
    assert by_ratio != likeliest
    assert [p["probability"] for p in predicted] == [p["probabilities"][p["label"]] for p in predicted]


def test_gates_and_best_by_know_the_metrics(classified: Path) -> None:
    assert aifx(classified, "config", "check", "--set", 'checkpoint.best_by="max auc"').returncode == 0
    failed = aifx(classified, "eval", "--gate", "balanced_accuracy > 1")
    assert failed.returncode == 1
    assert "balanced_accuracy > 1" in failed.stdout
    unknown = aifx(classified, "config", "check", "--set", 'eval.gates=["balanced_acuracy > 0"]')
    assert "did you mean 'balanced_accuracy'?" in unknown.stderr


def test_thresholds_need_validations(classified: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective\.threshold_by = 'f1'"):
        load_config(Project(classified), ["train.validate_every=0"], {})
