"""Labelled images: batches that are a function of (seed, step, rows), and what is said about wrong archives."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project
from aifx.data.arrays import ArrayDataset
from aifx.data.file_index import find_implicit
from aifx.data.images import ImageFormat
from aifx.data.sections import ImagesSection
from aifx.data.splits import Split

Write = Callable[..., Path]
SPLITS: list[Split] = ["train", "validation", "test"]
ALL = slice(None)


def arrays(count: int = 60, size: tuple[int, ...] = (8, 6), seed: int = 0) -> dict[str, Any]:
    source = np.random.default_rng(seed)
    return {
        "train_images": source.integers(0, 256, (count, *size)).astype(np.uint8),
        "train_labels": np.arange(count) % 5,
        "test_images": source.integers(0, 256, (10, *size)).astype(np.uint8),
        "test_labels": np.arange(10) % 5,
    }


def archive(**values: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **values)
    return stream.getvalue()


def open_(project: Project, **keys: Any) -> ArrayDataset:
    section = ImagesSection(**{"image_size": (8, 6), "validation_fraction": 0.2, **keys})
    return ImageFormat.open(section, project, project.root)[1]


def test_each_image_is_in_one_split(project: Project, write: Write) -> None:
    values = arrays()
    write("images.npz", archive(**values))
    data = open_(project)
    assert data.spec.fields["inputs"].shape == (8, 6, 1)
    assert data.spec.classes == ("0", "1", "2", "3", "4")
    assert len(data.spec.classes) == 5
    found = [image.tobytes() for split in ("train", "validation") for image in data.splits[split]["inputs"]]
    assert sorted(found) == sorted(image.tobytes() for image in values["train_images"])
    assert 3 <= len(data.splits["validation"]["targets"]) <= 25
    by_image = {
        image.tobytes(): label for image, label in zip(values["train_images"], values["train_labels"], strict=True)
    }
    for split in ("train", "validation"):
        for image, label in zip(data.splits[split]["inputs"], data.splits[split]["targets"], strict=True):
            assert by_image[image.tobytes()] == label
    assert np.array_equal(data.splits["test"]["inputs"][..., 0], values["test_images"])
    assert data.splits["test"]["targets"].dtype == np.int32


def test_copies_of_an_image_stay_together(project: Project, write: Write) -> None:
    values = arrays()
    values["train_images"] = np.concatenate([values["train_images"]] * 3)
    values["train_labels"] = np.concatenate([values["train_labels"]] * 3)
    write("images.npz", archive(**values))
    data = open_(project)
    train, validation = (
        {image.tobytes() for image in data.splits[split]["inputs"]} for split in ("train", "validation")
    )
    assert not train & validation
    assert len(train | validation) == 60


def test_colour_images(project: Project, write: Write) -> None:
    write("images.npz", archive(**arrays(size=(8, 6, 3))))
    data = open_(project)
    assert data.spec.fields["inputs"].shape == (8, 6, 3)
    assert data.source("train", batch_size=4, seed=0).read(0, ALL)["inputs"].shape == (4, 8, 6, 3)


def test_evaluation_holds_each_image_once(project: Project, write: Write) -> None:
    write("images.npz", archive(**arrays()))
    data = open_(project)
    source = data.source("test", batch_size=4, seed=None)
    assert source.num_batches == 3
    batches = [source.read(step, ALL) for step in range(3)]
    assert all(batch["inputs"].shape == (4, 8, 6, 1) for batch in batches)
    assert all(batch["inputs"].dtype == np.uint8 for batch in batches)
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert joined["weights"].tolist() == [1.0] * 10 + [0.0] * 2
    assert joined["weights"].dtype == np.float32
    assert joined["targets"].dtype == np.int32
    assert np.array_equal(joined["inputs"][:10], data.splits["test"]["inputs"])
    assert joined["targets"][:10].tolist() == data.splits["test"]["targets"].tolist()
    assert not joined["inputs"][10:].any()
    whole = data.source("train", batch_size=4, seed=None)
    parts = [whole.read(step, ALL) for step in range(whole.num_batches or 0)]
    images = np.concatenate([part["inputs"][part["weights"] > 0] for part in parts])
    assert np.array_equal(images, data.splits["train"]["inputs"]), "in order"


def test_an_epoch_holds_each_image_once(project: Project, write: Write) -> None:
    write("images.npz", archive(**arrays()))
    data = open_(project)
    count = len(data.splits["train"]["targets"])
    source = data.source("train", batch_size=count, seed=0)
    assert source.num_batches is None
    orders = []
    for epoch in range(3):
        batch = source.read(epoch, ALL)
        assert (batch["weights"] == 1).all()
        orders.append([image.tobytes() for image in batch["inputs"]])
        assert sorted(orders[-1]) == sorted(image.tobytes() for image in data.splits["train"]["inputs"])
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("split", SPLITS)
def test_rows_may_be_divided_among_hosts(split: Split, project: Project, write: Write) -> None:
    write("images.npz", archive(**arrays()))
    source = open_(project).source(split, batch_size=8, seed=3)
    for step in (0, 1, 30):
        whole = source.read(step, ALL)
        parts = [source.read(step, rows) for rows in (slice(0, 3), slice(3, 3), slice(3, 8))]
        for name in whole:
            assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_an_archive_is_an_implicit_version(project: Project, write: Write) -> None:
    content = archive(**arrays())
    path = write("images.npz", content)
    section = ImagesSection()
    found = find_implicit("data.path", section, project)
    assert open_(project).file_versions == {"data.path": found}
    assert [scan.digest for scan in found.files.values()] == [sha256_of(content)]
    path.write_bytes(content[:-1])
    with pytest.raises(UsageError, match=found.reference):
        find_implicit(found.reference, section, project)


def test_no_validation_when_none_is_asked_for(project: Project, write: Write) -> None:
    write("images.npz", archive(**arrays()))
    data = open_(project, validation_fraction=0)
    assert len(data.splits["train"]["targets"]) == 60
    with pytest.raises(DataError, match=r"data/images.npz: .*validation split"):
        data.source("validation", batch_size=4, seed=None)


def test_the_digest_covers_pixels_and_how_they_are_read(project: Project, write: Write) -> None:
    write("images.npz", archive(**arrays()))
    keys: list[dict[str, Any]] = [
        {},
        {"sampling": "balanced"},
        {"class_weights": "balanced"},
        {"validation_fraction": 0.3},
    ]
    digests = [open_(project, **each).digest for each in keys]
    assert open_(project).digest == digests[0]
    changed = arrays()
    changed["test_labels"][3] += 1
    write("images.npz", archive(**changed))
    digests.append(open_(project).digest)
    assert len(set(digests)) == 5


def with_(**changes: Any) -> bytes:
    return archive(**(arrays() | changes))


def encrypted(data: bytes) -> bytes:
    """The archive with the flag of encryption on each entry, in its local header and in the central directory."""
    changed = bytearray(data)
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := data.find(signature, place + 1)) >= 0:
            changed[place + flags] |= 1
    return bytes(changed)


GOOD = arrays()
IMAGES, LABELS = GOOD["train_images"], GOOD["train_labels"]
TEST_IMAGES, TEST_LABELS = GOOD["test_images"], GOOD["test_labels"]


def bad(name: str, content: bytes, what: str, why: str = "", **keys: Any) -> Any:
    return pytest.param(content, what, why, keys, id=name)


BAD = [
    bad("empty", b"", ": not an .npz archive", "0 bytes"),
    bad("text", b"no archive", ": not an .npz archive", "10 bytes"),
    bad("something before it", b"#!/bin/sh\n" + archive(**GOOD), ": a damaged archive"),
    bad("npy", archive(**GOOD)[:-200], ": not an .npz archive", "no zip file"),
    bad("nothing", archive(), ": no array 'train_images'", "it holds nothing"),
    bad("names", archive(x=IMAGES, y=LABELS), ": no array 'train_images'", "x, y"),
    bad("no test", archive(**{k: v for k, v in GOOD.items() if k != "test_labels"}), ": no array 'test_l"),
    bad("float", with_(train_images=IMAGES / 255), ": train_images is float64", "uint8"),
    bad(
        "size",
        with_(),
        ": train_images has shape [60, 8, 6]",
        "8 x 6 and data.image_size is 28 x 28",
        image_size=(28, 28),
    ),
    bad("test size", with_(test_images=TEST_IMAGES[:, :7]), ": test_images has shape [10, 7, 6]", "7 x 6"),
    bad("flat", with_(train_images=IMAGES.reshape(60, -1)), ": train_images has shape [60, 48]", "height"),
    bad("none", with_(train_images=IMAGES[:0], train_labels=[]), ": train_images has no images"),
    bad(
        "channels",
        with_(test_images=TEST_IMAGES[..., None].repeat(3, -1)),
        ": train_images and test_images differ",
        "(8, 6, 3)",
    ),
    bad("fewer labels", with_(train_labels=LABELS[1:]), ": train_labels has shape [59]", "60 images"),
    bad("one hot", with_(test_labels=np.eye(10, dtype=int)), ": test_labels has shape [10, 10]", "one label"),
    bad("real labels", with_(test_labels=TEST_LABELS * 1.0), ": test_labels is float64", "integers"),
    bad("names as labels", with_(test_labels=np.array(["shoe"] * 10)), ": test_labels is <U4", "integers"),
    bad("durations", with_(train_labels=LABELS.astype("timedelta64[s]")), ": train_labels is timedelta64", "integers"),
    bad("dates", with_(test_labels=TEST_LABELS.astype("datetime64[s]")), ": test_labels is datetime64", "integers"),
    bad("encrypted", encrypted(with_()), ": array 'train_images' cannot be read", "is encrypted, password"),
    bad("negative", with_(test_labels=TEST_LABELS - 1), ": test_labels holds -1", "image 0 has it"),
    bad("too large", with_(), ": train_labels holds 3", "from 0 to 2", classes=("a", "b", "c")),
    bad(
        "objects",
        with_(train_labels=np.array([{"label": 1}] * 60)),
        ": array 'train_labels' cannot be read",
        "Python objects",
    ),
    bad("all held out", with_(), ": validation takes every training image", validation_fraction=0.999999),
    bad("none held out", with_(), ": no training image is held out", validation_fraction=1e-09),
]


@pytest.mark.parametrize(("content", "what", "why", "keys"), BAD)
def test_bad_archives_are_named(
    content: bytes, what: str, why: str, keys: dict[str, Any], project: Project, write: Write
) -> None:
    write("images.npz", content)
    with pytest.raises(DataError) as caught:
        open_(project, **keys)
    assert caught.value.what.startswith("data/images.npz" + what)
    assert why in caught.value.why
    assert caught.value.hint


def test_damaged_archives_are_named(project: Project, write: Write) -> None:
    whole = bytearray(archive(**arrays()))
    place = whole.index(b"\x93NUMPY") + 500
    whole[place] ^= 0x10
    write("images.npz", bytes(whole))
    with pytest.raises(DataError, match=r"data/images.npz: .*'train_images'"):
        open_(project)


def test_a_pipe_as_the_archive_is_refused_and_not_waited_for(project: Project) -> None:
    os.mkfifo(project.root / "data/images.npz")
    with pytest.raises(DataError, match=r"data/images.npz is not"):
        open_(project)


def test_archives_that_are_not_there(project: Project) -> None:
    with pytest.raises(DataError, match=r"data/images.npz cannot be read"):
        open_(project)
    with pytest.raises(DataError, match="no folders of classes"):
        open_(project, path="data")
