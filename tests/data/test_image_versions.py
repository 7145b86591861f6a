"""Pictures of a data set's version."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stored_versions import make_version

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.data.arrays import ArrayDataset
from aifx.data.images import ImageFormat
from aifx.data.readers import pictures
from aifx.data.sections import ImagesSection

HELD_OUT = {"validation_fraction": 0.2, "test_fraction": 0.2, "image_size": (8, 8)}


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 7, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


LABELS = ["bad"] * 20 + ["good"] * 30
PICTURES = [picture(seed) for seed in range(len(LABELS))]


def open_images(project: Project, **keys: object) -> ArrayDataset:
    return ImageFormat.open(ImagesSection(**{**HELD_OUT, **keys}), project, project.root / "assets")[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_the_batches_are_those_of_the_folder(project: Project, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FEW", 4)
    for number, (label, data) in enumerate(zip(LABELS, PICTURES, strict=True)):
        path = project.root / f"data/parts/{label}/{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    make_version(project, "parts", {"image": PICTURES, "label": LABELS}, "images", shards=3)
    of_folder = open_images(project, path="data/parts", workers=workers)
    of_version = open_images(project, dataset="parts", workers=workers)
    assert of_version.digest == of_folder.digest
    assert of_version.spec.classes == ("bad", "good")
    for split, seed in (("train", 3), ("validation", None), ("test", None)):
        one, other = (data.source(split, 4, seed=seed).read(1, slice(None)) for data in (of_folder, of_version))
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])


def test_the_column_of_splits_decides(project: Project) -> None:
    named = [("train", "validation", "test")[index % 3] for index in range(len(LABELS))]
    make_version(project, "parts", {"image": PICTURES, "label": LABELS, "_split": named}, "images", shards=2)
    data = open_images(project, dataset="parts")
    for number, split in enumerate(("train", "validation", "test")):
        expected = [f"{data.name}: row r-{index}" for index in range(number, len(LABELS), 3)]
        assert data.places(split, range(len(expected))) == expected
        assert len(data.splits[split]["targets"]) == len(expected)


def test_a_cluster_is_in_one_split(project: Project) -> None:
    clusters = [f"{label}-{index % 10}" for index, label in enumerate(LABELS)]
    make_version(project, "parts", {"image": PICTURES, "label": LABELS, "_cluster": clusters}, "images")
    data = open_images(project, dataset="parts")
    of = [
        {clusters[int(place.rpartition("-")[2])] for place in data.places(split, range(len(arrays["targets"])))}
        for split, arrays in data.splits.items()
    ]
    assert all(of)
    assert sum(map(len, of)) == len(set(clusters))


def test_rows_without_a_label_are_left_out(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    make_version(project, "parts", {"image": PICTURES, "label": [None, *LABELS[1:]]}, "images")
    with caplog.at_level(logging.WARNING):
        data = open_images(project, dataset="parts")
    assert "1 row without" in caplog.text
    assert sum(len(arrays["targets"]) for arrays in data.splits.values()) == len(LABELS) - 1


def test_a_picture_that_cannot_be_used_is_named(project: Project) -> None:
    broken = [*PICTURES[:-2], PICTURES[-2][:60], None]
    version = make_version(project, "parts", {"image": broken, "label": LABELS}, "images")
    with pytest.raises(DataError, match="row r-48") as refused:
        open_images(project, dataset="parts")
    assert "row r-49" in refused.value.why
    assert version.reference in refused.value.what


def test_damaged_pixels_are_decoded_again(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    make_version(project, "parts", {"image": PICTURES, "label": LABELS}, "images", shards=2)
    before = open_images(project, dataset="parts").source("test", 4, seed=None).read(0, slice(None))["inputs"].copy()
    (pixels,) = Path(project.root.parent / "cache/images").glob("*/pixels")
    pixels.write_bytes(bytes(pixels.stat().st_size))
    again = open_images(project, dataset="parts").source("test", 4, seed=None).read(0, slice(None))["inputs"]
    np.testing.assert_array_equal(again, before)
    assert "damaged; decoding it again" in caplog.text


def test_the_store_is_named_by_the_shards(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest has their digests, so that no shard is read to find its store."""
    version = make_version(project, "parts", {"image": [*PICTURES[:-1], None], "label": LABELS}, "images", shards=2)
    first = open_images(project, dataset="parts", errors="skip")
    for path in version.shards:
        os.utime(path, ns=(0, 0))
    monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("it is decoded again"))
    assert open_images(project, dataset="parts", errors="skip").digest == first.digest
    (store,) = Path(project.root.parent / "cache/images").iterdir()
    digests = np.load(store / "digests.npy")[:, 0]
    assert [digest.tobytes().hex() for digest in digests] == [*map(sha256_of, PICTURES[:-1]), "00" * 32]
