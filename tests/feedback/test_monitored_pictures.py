"""`aifx monitor` of pictures: their light, and their distance in the model's last layer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest

from aifx.feedback.pictures import distances, light_of

PICTURES = Path(__file__).parents[2] / "templates/vision-inspection/data/fashion_mnist_small.npz"
TOML = """\
[task]
kind = "vision"
[data]
validation_fraction = 0.3
[model]
channels = [8, 16]
[train]
num_steps = 2
global_batch_size = 100
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on 400 pictures, with about 220 held-out ones."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "data").mkdir()
    arrays = np.load(PICTURES)
    counts = {"train_images": 400, "train_labels": 400, "test_images": 100, "test_labels": 100}
    np.savez(root / "data/images.npz", **{name: arrays[name][:count] for name, count in counts.items()})
    (root / "aifx.toml").write_text(TOML)
    done = inprocess.run(["train", "--run", "main"], root, os.environ)
    assert done.returncode == 0, done.stderr
    return root


def blurred(images: np.ndarray) -> np.ndarray:
    """The means of 3 x 3 pixels."""
    padded = np.pad(images.astype(float), ((0, 0), (1, 1), (1, 1)), mode="edge")
    shifted = [padded[:, y : y + 28, x : x + 28] for y in range(3) for x in range(3)]
    return np.mean(shifted, axis=0).astype(np.uint8)


def monitored(project: Path, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    images = np.load(PICTURES)["test_images"][500:800]
    np.save(project / "now.npy", change(images))
    done = inprocess.run(["monitor", "main", "now.npy", "--json"], project, os.environ)
    return json.loads(done.stdout)


@pytest.mark.representative
def test_darker_and_blurred_pictures_drift_and_others_of_the_same_kind_do_not(project: Path) -> None:
    same = monitored(project, lambda images: images)
    assert same["drifted"] == []
    assert same["reference_rows"] < 300
    names = {one["column"] for one in same["columns"]}
    assert names == {
        "image.brightness",
        "image.sharpness",
        "image.distance",
        "prediction.label",
        "prediction.probability",
    }
    darker = monitored(project, lambda images: (images * 0.7).astype(np.uint8))["drifted"]
    assert "image.brightness" in darker
    assert "image.sharpness" not in darker
    assert "image.sharpness" in monitored(project, blurred)["drifted"]


def test_light_is_that_of_grey_and_of_coloured_pictures_and_none_of_what_is_none() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    flat = np.full((8, 8, 1), 51, np.uint8)
    brightness, sharpness = light_of([image, np.repeat(image[..., None], 3, axis=2), flat, None])
    assert brightness[:3] == pytest.approx([image.mean() / 255, image.mean() / 255, 0.2], rel=1e-5)
    assert sharpness[0] == pytest.approx(sharpness[1], rel=1e-4)
    assert sharpness[2] == 0
    assert np.isnan([brightness[3], sharpness[3]]).all()


def test_what_the_model_does_not_know_is_far_from_what_it_knows() -> None:
    draw = np.random.default_rng(0)
    centers = draw.normal(size=(4, 64))
    known, same = (centers[draw.integers(3, size=300)] + 0.1 * draw.normal(size=(300, 64)) for _ in range(2))
    other = centers[3] + 0.1 * draw.normal(size=(50, 64))
    own, usual, far = distances(known, known, are_known=True), distances(same, known), distances(other, known)
    assert far.min() > max(own.max(), usual.max())
    assert np.median(own) == pytest.approx(np.median(usual), rel=0.05)
