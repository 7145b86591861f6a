"""Augmentation: a function of (seed, step, row), and what each of its settings does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifx.config.sections import AugmentSection
from aifx.core.errors import ConfigError
from aifx.data.arrays import ArrayDataset, array_dataset
from aifx.data.augment import AugmentedSource, augmented, change, generator
from aifx.data.base import Batch

ALL = slice(None)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 10, 14, 3)).astype(np.uint8)
LABELS = np.arange(40, dtype=np.int32) % 4


def dataset(images: np.ndarray = IMAGES, targets: np.ndarray = LABELS) -> ArrayDataset:
    return array_dataset({"train": {"inputs": images, "targets": targets}}, classes=("a", "b", "c", "d"))


def read(keys: dict[str, Any], step: int, rows: slice = ALL, *, seed: int = 0, data: Any = None) -> Batch:
    data = data or dataset()
    source = data.source("train", 8, seed=seed)
    return augmented(source, AugmentSection(**keys), data.spec, seed).read(step, rows)


changes_made = st.fixed_dictionaries(
    {},
    optional={
        "flip": st.sampled_from(["horizontal", "vertical", "both"]),
        "rotate": st.sampled_from([5.0, 180.0]),
        "crop": st.sampled_from([0.3, 0.9]),
        "shift": st.integers(1, 20),
        "brightness": st.sampled_from([0.1, 1.0]),
        "contrast": st.sampled_from([0.1, 1.0]),
        "erase": st.sampled_from([0.2, 1.0]),
        "mixup": st.sampled_from([0.2, 1.0]),
    },
)


@settings(max_examples=25)
@given(changes_made, st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.integers(0, 8), st.integers(0, 8))
def test_a_batch_is_a_function_of_seed_step_and_rows(
    keys: dict[str, Any], seed: int, step: int, first: int, second: int
) -> None:
    whole = read(keys, step, seed=seed)
    assert {name: (values.dtype, len(values)) for name, values in whole.items()} == {
        "inputs": (np.uint8, 8),
        "targets": (np.int32, 8),
        "weights": (np.float32, 8),
    }
    start, stop = sorted((first, second))
    parts = [read(keys, step, rows, seed=seed) for rows in (slice(0, start), slice(start, stop), slice(stop, 8))]
    for name, values in whole.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), values)
    if keys and keys != {"shift": 0}:
        others = [read(keys, step + 5 * 64, seed=seed), read(keys, step, seed=seed + 1)]
        assert any(not np.array_equal(other["inputs"], whole["inputs"]) for other in others)


def test_threads_and_what_was_read_before_change_nothing() -> None:
    section = AugmentSection(
        flip="both", rotate=20, crop=0.7, shift=2, brightness=0.3, contrast=0.3, erase=0.2, mixup=0.4
    )
    source = dataset().source("train", 8, seed=0)
    alone = {step: AugmentedSource(source, section, 0, threads=1).read(step, ALL) for step in range(3)}
    for threads in (1, 2, 3, 11):
        shared = AugmentedSource(source, section, 0, threads)
        for step in (0, 1, 2, 1, 1, 0):  # of two steps in a row, mixup makes the second once
            batch = shared.read(step, ALL)
            assert all(np.array_equal(values, alone[step][name]) for name, values in batch.items())
        assert np.array_equal(shared.read(1, slice(3, 6))["inputs"], alone[1]["inputs"][3:6])
        assert shared.read(0, slice(4, 4))["inputs"].shape == (0, 10, 14, 3)


def test_the_data_is_not_changed() -> None:
    data = dataset()

    class Views:
        """A source whose batches are parts of what it holds."""

        batch_size, num_batches = 8, None

        def read(self, number: int, rows: slice) -> Batch:
            return {"inputs": held[rows], "targets": LABELS[:8][rows], "weights": np.ones(8, np.float32)[rows]}

    held = IMAGES[:8].copy()
    held.flags.writeable = False
    section = AugmentSection(flip="both", brightness=0.5, erase=0.3, mixup=0.3)
    assert (augmented(Views(), section, data.spec, 0).read(0, ALL)["inputs"] != held).any()


def test_nothing_changes_by_default() -> None:
    data = dataset()
    source = data.source("train", 8, seed=0)
    assert augmented(source, AugmentSection(), data.spec, 0) is source


def changes(image: np.ndarray, count: int = 64, **keys: Any) -> list[np.ndarray]:
    section = AugmentSection(**keys)
    return [change(image, section, generator("augment", 0, place)) for place in range(count)]


def test_flips() -> None:
    image = IMAGES[0]
    ways = {
        "horizontal": [image, image[:, ::-1]],
        "vertical": [image, image[::-1]],
        "both": [image, image[:, ::-1], image[::-1], image[::-1, ::-1]],
    }
    for flip, expected in ways.items():
        found = {changed.tobytes() for changed in changes(image, flip=flip)}
        assert found == {way.tobytes() for way in expected}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_shifts_move_pixels_and_mirror_what_is_outside(channels: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (9, 7, channels)).astype(np.uint8)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="symmetric")
    allowed = {padded[y : y + 9, x : x + 7].tobytes() for y in range(5) for x in range(5)}
    assert {changed.tobytes() for changed in changes(image, 400, shift=2)} == allowed


def test_rotations_turn_about_the_centre() -> None:
    image = np.zeros((41, 41, 1), np.uint8)
    image[18:23, 20:] = 255  # a hand to the right
    ys, xs = np.mgrid[-20:21, -20:21]
    inner = (xs**2 + ys**2 < 19**2) & (xs**2 + ys**2 > 8**2)
    angles = []
    for turned in changes(image, 200, rotate=90):
        weight = turned[..., 0] * inner
        angles.append(np.degrees(np.arctan2((weight * ys).sum(), (weight * xs).sum())))
    assert -92 < min(angles) < -80
    assert 80 < max(angles) < 92
    assert abs(np.mean(angles)) < 12
    for turned in changes(image, 20, rotate=1):
        assert np.abs(turned.astype(int) - image)[:, :10].max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_shows_what_a_crop_with_a_hardly_visible_turn_shows(channels: int) -> None:
    ys, xs = np.mgrid[:37, :52]
    image = np.stack([3 * ys + 2 * xs, 5 * ys, 4 * xs][:channels], axis=-1).astype(np.uint8)
    keys = {"crop": 0.3, "shift": 6, "flip": "both"}
    straight = np.array(changes(image, 50, **keys), int)
    turned = np.array(changes(image, 50, rotate=1e-6, **keys), int)
    assert np.abs(straight - turned).max() <= 1
    assert len({picture.tobytes() for picture in straight}) == 50


def test_crops_enlarge_a_part_and_keep_it_whole() -> None:
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 60, axis=0)
    spans = np.array([int(cut[0, -1, 0]) - int(cut[0, 0, 0]) for cut in changes(ramp, 200, crop=0.25)])
    assert spans.max() > 170
    assert 198 * np.sqrt(0.25 * 3 / 4) - 8 < spans.min() < 120
    flat = np.full((10, 14, 3), 77, np.uint8)
    for changed in changes(flat, crop=0.1, rotate=180, shift=5, flip="both"):
        assert (changed == 77).all(), "no edge is darkened, and nothing black comes in"


def test_brightness_and_contrast() -> None:
    image = np.array([[[80]], [[160]]], np.uint8)
    bright = np.array([changed.ravel() for changed in changes(image, 200, brightness=0.2)], int)
    assert set(bright[:, 1] - bright[:, 0]) == {80}
    assert (bright[:, 0].min() < 36, bright[:, 0].max() > 124) == (True, True)
    assert 29 <= bright[:, 0].min() <= bright[:, 0].max() <= 131
    contrasts = np.array([changed.ravel() for changed in changes(image, 200, contrast=0.5)], int)
    differences = contrasts[:, 1] - contrasts[:, 0]
    assert (contrasts.mean(axis=1) == 120).mean() > 0.4  # rounding aside
    assert 40 <= differences.min() < 45
    assert 115 < differences.max() <= 121


def test_opacity_is_not_lit() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 4)).astype(np.uint8)
    for changed, colours in zip(
        changes(image, brightness=0.3, contrast=0.3), changes(image[..., :3], brightness=0.3, contrast=0.3), strict=True
    ):
        assert np.array_equal(changed, np.concatenate([colours, image[..., 3:]], axis=-1))


def test_what_is_erased_is_a_rectangle_of_noise() -> None:
    image = np.full((24, 30, 3), 77, np.uint8)
    shares = []
    for changed in changes(image, 200, erase=0.4):
        erased = (changed != image).any(axis=-1)
        down, across = erased.any(axis=1).nonzero()[0], erased.any(axis=0).nonzero()[0]
        if len(down):
            rectangle = changed[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
            assert (rectangle != 77).mean() > 0.9
            assert rectangle.shape[0] / 24 <= 3.1 * rectangle.shape[1] / 30 + 0.1
        shares.append(erased.mean())
    assert 0.35 < max(shares) < 0.43
    assert 0.17 < np.mean(shares) < 0.23


@pytest.mark.slow
def test_mixup_mixes_each_image_with_one_of_the_next_step() -> None:
    flat = np.repeat(np.arange(40, dtype=np.uint8) * 6, 4).reshape(40, 2, 2, 1)
    data = dataset(flat, np.arange(40, dtype=np.int32))
    plain = [data.source("train", 8, seed=0).read(step, ALL) for step in range(81)]
    shares, kept = [], []
    for step in range(80):
        batch = read({"mixup": 0.4}, step, data=data)
        ours, theirs = plain[step], plain[step + 1]
        low, high = (find(ours["inputs"], theirs["inputs"]) for find in (np.minimum, np.maximum))
        assert ((batch["inputs"] >= low) & (batch["inputs"] <= high)).all()
        assert ((batch["targets"] == ours["targets"]) | (batch["targets"] == theirs["targets"])).all()
        first, second, mixed = (b["inputs"][:, 0, 0, 0].astype(float) for b in (ours, theirs, batch))
        differs = np.abs(first - second) > 60
        shares += ((mixed - second)[differs] / (first - second)[differs]).tolist()
        kept += (batch["targets"] == ours["targets"])[differs].tolist()
    assert np.mean(kept) == pytest.approx(0.5, abs=0.1)
    assert np.corrcoef(shares, kept)[0, 1] > 0.6, "a label is drawn by its share"
    extreme = np.mean([min(share, 1 - share) < 0.1 for share in shares])
    assert 0.3 < extreme < 0.7  # of Beta(0.4, 0.4): 0.5


def test_mixup_mixes_numbers_and_weights_classes() -> None:
    numbers = dataset(np.repeat(np.arange(40, dtype=np.uint8) * 6, 4).reshape(40, 2, 2, 1), np.arange(40.0))
    batch = read({"mixup": 1.0}, 3, data=numbers)
    assert batch["targets"].dtype == np.float32
    assert batch["targets"] * 6 == pytest.approx(batch["inputs"][:, 0, 0, 0], abs=0.51)
    weighted = replace(dataset(), emphasis=(LABELS + 1).astype(np.float32))
    batch = read({"mixup": 1.0}, 3, data=weighted)
    assert batch["weights"].tolist() == (batch["targets"] + 1).tolist()


def test_only_images_are_augmented() -> None:
    table = array_dataset({"train": {"inputs": np.zeros((3, 5)), "targets": np.zeros(3)}})
    with pytest.raises(ConfigError, match="needs images") as caught:
        read({"shift": 1}, 0, data=table)
    assert "float32 [5]" in caught.value.why
