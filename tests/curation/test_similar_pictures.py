"""Pictures that look the same: planted copies of photographs, and pictures that only resemble each other."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sklearn.datasets
from inprocess import run
from made_rows import LIMITS, Made, numbered, rows_of
from PIL import Image, ImageEnhance
from scipy.fft import idctn

from aifx.curation.execution import execute
from aifx.curation.pictures import PICTURE, PictureDedupe, candidates, hash_of, shrunk
from aifx.data.names import CLUSTER, ROW, SOURCE
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.manifest import Version

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"
COUNT, PLANTED = 30, 12


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


def parts_of_photos(count: int) -> list[Image.Image]:
    """Parts of two photographs, of which some overlap."""
    chosen = np.random.default_rng(5)
    photos = [Image.open(PHOTOS / name).convert("RGB") for name in ("china.jpg", "flower.jpg")]
    found = []
    for number in range(count):
        photo = photos[number % 2]
        width, height = chosen.integers(90, 200, 2).tolist()
        x, y = (int(chosen.integers(0, whole - own)) for whole, own in zip(photo.size, (width, height), strict=True))
        found.append(photo.crop((x, y, x + width, y + height)))
    return found


def file_of(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def changed(picture: Image.Image, way: int) -> bytes:
    """A copy of a picture: encoded again, smaller, stretched, darker, of more contrast, or most of these."""
    width, height = picture.size
    half = picture.resize((width // 2, height // 2))
    return [
        lambda: file_of(picture, "JPEG", quality=50),
        lambda: file_of(half),
        lambda: file_of(picture.resize((width, height // 2)), "WEBP"),
        lambda: file_of(ImageEnhance.Brightness(picture).enhance(0.7)),
        lambda: file_of(ImageEnhance.Contrast(picture).enhance(1.2)),
        lambda: file_of(ImageEnhance.Brightness(half).enhance(0.9), "JPEG", quality=85),
    ][way % 6]()


def version_of(catalog: Catalog, pictures: list[bytes], per_shard: int = 15) -> Version:
    ids = [row for row, _ in numbered([""] * len(pictures))]
    tables = tuple(
        pa.table(
            {
                ROW: ids[begin : begin + per_shard],
                SOURCE: ["f"] * len(pictures[begin : begin + per_shard]),
                "image": pa.array(pictures[begin : begin + per_shard], pa.binary()),
            }
        )
        for begin in range(0, len(pictures), per_shard)
    )
    return execute(Made((), tables, "images"), "photos", catalog, LIMITS).version


def test_planted_copies_are_found_and_other_pictures_are_kept(catalog: Catalog) -> None:
    parts = parts_of_photos(COUNT)
    copies = [changed(parts[number], number) for number in range(PLANTED)]
    version = version_of(catalog, [*(file_of(part) for part in parts), *copies, file_of(parts[COUNT - 1])])
    made = execute(PictureDedupe((version,)), "photos", catalog, LIMITS).version
    ids = [row[ROW] for row in rows_of(version.shards)]
    dropped = {row[ROW]: (row["rule"], row["twin"]) for row in rows_of(made.dropped)}
    planted = {ids[COUNT + number]: (PICTURE, ids[number]) for number in range(PLANTED)}
    assert dropped == planted | {ids[-1]: ("exact", ids[COUNT - 1])}
    assert [row[ROW] for row in rows_of(made.shards)] == ids[:COUNT]
    assert made.manifest.facts[PICTURE] == made.manifest.facts["pairs"] == PLANTED
    assert made.manifest.step.settings == {"images": 8, "mark": False}


def test_pictures_of_one_colour_and_damaged_ones_have_copies_only(catalog: Catalog) -> None:
    grey = [file_of(Image.new("RGB", (20, 20), (value, value, value))) for value in (90, 91, 200)]
    damaged = [b"no picture", file_of(parts_of_photos(1)[0])[:300]]
    version = version_of(catalog, [*grey, *damaged, grey[1], damaged[1]])
    made = execute(PictureDedupe((version,), mark=True), "photos", catalog, LIMITS).version
    ids = [row[ROW] for row in rows_of(version.shards)]
    assert [row[CLUSTER] for row in rows_of(made.shards)] == [*ids[:5], ids[1], ids[4]]
    assert made.manifest.facts["incomparable"] == 7


@pytest.mark.parametrize("distance", [0, 1, 3, 8, 16])
def test_candidates_are_the_pairs_of_comparing_all(distance: int) -> None:
    chosen = np.random.default_rng(distance)
    hashes = chosen.integers(0, 2**64, 60, np.uint64).repeat(4)
    for _ in range(10):  # up to ten bits of each hash are flipped
        hashes ^= np.uint64(1) << chosen.integers(0, 64, len(hashes)).astype(np.uint64)
    left, right = np.triu_indices(len(hashes), 1)
    near = np.bitwise_count(hashes[left] ^ hashes[right]) <= distance
    pairs = [
        (min(pair), max(pair))
        for one, other in candidates(hashes, distance)
        for pair in zip(one.tolist(), other.tolist(), strict=True)
    ]
    assert sorted(pairs) == sorted(zip(left[near].tolist(), right[near].tolist(), strict=True))


def aifx(folder: Path, *args: str) -> CompletedProcess[str]:
    return run(["data", *args, "--root", "datasets"], folder, dict(os.environ))


def test_the_command(tmp_path: Path) -> None:
    parts = parts_of_photos(3)
    (tmp_path / "photos").mkdir()
    for number, data in enumerate([*map(file_of, parts), changed(parts[0], 1), changed(parts[1], 5)]):
        (tmp_path / "photos" / f"{number}.png").write_bytes(data)
    (tmp_path / "a.txt").write_text("Call me Ishmael.")
    assert aifx(tmp_path, "add", "photos", "photos", "--kind", "images", "--license", "MIT").returncode == 0
    assert aifx(tmp_path, "add", "texts", "a.txt", "--license", "MIT").returncode == 0
    done = aifx(tmp_path, "dedupe", "photos", "--images", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["dropped_by"]) == (3, {PICTURE: 2})
    for args, what in (
        (["texts", "--images"], "--images is for pictures"),
        (["photos", "--images", "--distance", "17"], "--distance 17 is not between 0 and 16"),
        (["photos", "--distance", "7"], "--distance can only be used with --images"),
        (["photos", "--images", "--near", "0.8"], "--near and --images cannot be used together"),
        (["photos", "--images", "--audit"], "--audit and --images cannot be used together"),
    ):
        bad = aifx(tmp_path, "dedupe", *args)
        assert (bad.returncode, what in bad.stderr) == (2, True), bad.stderr


def test_candidates_that_look_different_are_kept(catalog: Catalog) -> None:
    chosen = np.random.default_rng(2)
    frequencies = np.zeros((2, 32, 32))
    signs = chosen.permutation(np.repeat([-1, 1], 32)).reshape(8, 8)
    frequencies[:, 1:9, 1:9] = signs * chosen.uniform(30, 60, (8, 8))
    frequencies[1, 1 + np.argwhere(signs > 0)[0, 0], 1 + np.argwhere(signs > 0)[0, 1]] *= 9  # its bit stays
    grey = (128 + idctn(frequencies, axes=(1, 2), norm="ortho")).round().clip(0, 255).astype(np.uint8)
    pictures = [file_of(Image.fromarray(each).convert("RGB")) for each in grey]
    hashes = hash_of(shrunk(pictures)[0])
    assert np.bitwise_count(hashes[0] ^ hashes[1]) <= 8
    made = execute(PictureDedupe((version_of(catalog, pictures),)), "photos", catalog, LIMITS).version
    assert (made.manifest.rows, made.manifest.facts["pairs"]) == (2, 1)
