"""Predictions of an image model from its run alone: .npz, .npy, pictures and rows, and what they cannot be."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import aifx
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.core.errors import DataError, UsageError
from aifx.core.json_files import write_text
from aifx.core.project import Project
from aifx.data.readers.rows import input_file
from aifx.data.spec import keep_spec
from aifx.evaluation.dataset import evaluate_files
from aifx.evaluation.held_out import evaluate
from aifx.kinds import load_config
from aifx.loading.prediction import LoadedModel
from aifx.runs.binding import open_digests
from aifx.specs import init_params
from aifx.tasks import open_task

PICTURES = Path(__file__).parents[2] / "templates/vision-inspection/data/fashion_mnist_small.npz"
CLASSES = ["top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model is its initialization, and whose training images are gone once it was measured."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "data").mkdir()
    arrays = np.load(PICTURES)
    np.savez(root / "data/images.npz", **{k: arrays[k][:50] for k in arrays})
    (root / "aifx.toml").write_text(
        "[task]\nkind = 'vision'\n[model]\nchannels = [4, 4]\n[train]\nglobal_batch_size = 16\n"
        f"[data]\nclasses = {CLASSES}\n"
    )
    found = Project(root)
    config = load_config(found, [], {})
    run = found.run("main")
    run.assets.mkdir(parents=True)
    task = open_task(config, found, run.assets)
    keep_spec(run.assets, task.data)
    checkpoints = Checkpoints(run.checkpoints, config.checkpoint)
    checkpoints.bind(open_digests(run, config, is_fresh=True).binding)
    checkpoints.save(1, {"params": init_params(task.model.specs(), jax.random.key(0))}, host={})
    checkpoints.wait()
    write_text(run.config, config.to_toml())
    (root / "test_report.json").write_text(json.dumps(evaluate(run, found).metrics))
    np.savez_compressed(root / "new.npz", images=arrays["test_images"][:50], labels=arrays["test_labels"][:50])
    np.save(root / "new.npy", arrays["test_images"][:50])
    (root / "data/images.npz").rename(root / "archive.npz")
    return root


@pytest.fixture(scope="module")
def model(project: Path) -> LoadedModel:
    return aifx.load(project / "runs/main")


@pytest.mark.slow
def test_shards_of_a_data_set(project: Path, model: LoadedModel) -> None:
    """Encoded pictures have the predictions of the same pixels, with the ids of their rows."""
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    encoded = []
    for image in np.load(project / "new.npy")[:3]:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        encoded.append(stream.getvalue())
    rows = {"_row": ["a-0", "a-1", "a-2"], "image": encoded, "label": pa.nulls(3, pa.string())}
    parquet.write_table(pa.table(rows), project / "shard.parquet")
    expected = list(model.predict_files(project / "new.npy"))[:3]
    found: list[dict[str, Any]] = []
    model.write_predictions([input_file(str(project / "shard.parquet"))], found.extend)
    assert [(prediction["row"], prediction["_row"]) for prediction in found] == [(1, "a-0"), (2, "a-1"), (3, "a-2")]
    for one, other in zip(found, expected, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], rel=1e-5)  # another batch
    parquet.write_table(pa.table({"_row": ["a-0"], "image": [encoded[0][:60]]}), project / "cut.parquet")
    with pytest.raises(DataError, match=r"cut.parquet: row 1 "):
        list(model.predict_files(project / "cut.parquet"))


@pytest.mark.slow
def test_the_same_images_have_the_same_predictions_in_every_format(project: Path, model: LoadedModel) -> None:
    from PIL import Image

    images = np.load(project / "new.npy")
    expected = list(model.predict_files(project / "new.npz"))
    assert len(expected) == 50
    assert list(expected[0]["probabilities"]) == CLASSES
    for prediction in expected:
        assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert prediction["probability"] == max(prediction["probabilities"].values())
        assert prediction["probabilities"][prediction["label"]] == prediction["probability"]
    assert list(model.predict_files(project / "new.npy")) == expected
    assert list(model.predict_files(project / "archive.npz")) == expected  # its test_images
    assert list(model.predict({"image": image} for image in images)) == expected
    (project / "new.jsonl").write_text("".join(json.dumps({"image": i.tolist()}) + "\n" for i in images))
    assert list(model.predict_files(project / "new.jsonl")) == expected
    for number in (0, 1):
        Image.fromarray(images[number]).save(project / f"{number}.png")
    found = list(model.predict_files(project / "0.png", project / "1.png"))
    assert [p["probabilities"] for p in found] == [
        pytest.approx(p["probabilities"], rel=1e-5) for p in expected[:2]
    ]  # another batch


@pytest.mark.slow
def test_pictures_of_any_size_are_made_to_fit(project: Path, model: LoadedModel) -> None:
    from PIL import Image

    Image.fromarray(np.load(project / "new.npy")[0]).save(project / "0.png")
    image = np.load(project / "new.npy")[0]
    large = Image.fromarray(image).resize((280, 280), Image.Resampling.NEAREST)
    for name in ("large.png", "large.bmp", "large.webp", "colour.tiff"):
        (large.convert("RGB") if name == "colour.tiff" else large).save(project / name, lossless=True)
    expected, *found = model.predict_files(*(project / name for name in ("0.png", "large.png", "large.bmp",
                                                                           "large.webp", "colour.tiff")))  # fmt: skip
    for prediction in found:
        assert prediction["probabilities"] == pytest.approx(expected["probabilities"], abs=0.1)
        assert prediction["probabilities"] == pytest.approx(found[0]["probabilities"], abs=1e-3)


def test_a_folder_is_its_pictures_by_name(project: Path, model: LoadedModel, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("b.png", "a.png", "more/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.load(project / "new.npy")[len(name)]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    rows = list(model.read([input_file(str(tmp_path))]))
    assert [row.file for row in rows] == [str(tmp_path / name) for name in ("a.png", "b.png", "more/c.png")]
    expected = list(model.predict_files(*(row.file for row in rows)))
    assert list(model.predict_files(tmp_path)) == expected
    (tmp_path / "list.csv").write_text("file,label\na.png,bag\nb.png,\nmore/c.png,coat\n")
    assert list(model.predict_files(tmp_path / "list.csv")) == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no pictures"):
        list(model.predict_files(tmp_path / "empty"))


def test_a_data_set_is_measured_as_the_split_it_is(project: Path, model: LoadedModel) -> None:
    found = Project(project)
    report = evaluate_files(found.existing_run("main"), found, [project / "new.npz", project / "archive.npz"])
    whole = json.loads((project / "test_report.json").read_text())
    assert [dict(data.metrics) for data in report.datasets] == [whole, whole]
    labels = np.load(project / "new.npz")["labels"]
    predicted = [CLASSES.index(p["label"]) for p in model.predict_files(project / "new.npz")]
    assert whole["accuracy"] == np.mean(predicted == labels)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((27, 28), np.uint8), r"row 1.*\n.*\[27, 28\]"),
        (np.zeros((28, 28, 3), np.uint8), r"\[28, 28, 3\]"),
        (np.full((28, 28), 256), "0 to 255"),
        (np.full((28, 28), 0.5), "0 to 255"),
        ([[1, 2], [3]], "row 1"),
        ("picture.png", "0 to 255"),
    ],
)
def test_images_that_do_not_fit(model: LoadedModel, image: object, word: str) -> None:
    with pytest.raises(DataError) as caught:
        list(model.predict([{"image": image}]))
    assert re.search(word, str(caught.value))


def write_bad_files(folder: Path) -> dict[str, str]:
    """Files that hold no images, and a word of each one's error."""
    from PIL import Image

    images = np.load(folder / "new.npy")
    np.save(folder / "float.npy", images.astype(np.float32))
    np.save(folder / "flat.npy", images[0, 0])
    (folder / "cut.npy").write_bytes((folder / "new.npy").read_bytes()[:5000])
    (folder / "text.npy").write_text("images")
    np.savez(folder / "other.npz", pictures=images)
    (folder / "text.npz").write_text("images")
    damaged = bytearray((folder / "new.npz").read_bytes())
    damaged[2000:2100] = bytes(100)
    (folder / "damaged.npz").write_bytes(damaged)
    np.savez(folder / "objects.npz", images=np.array([None, {}]))
    Image.new("L", (1, 1)).save(folder / "dot.png")
    (folder / "text.png").write_text("images")
    (folder / "rows.txt").write_text("images")
    return {
        "float.npy": "uint8",
        "flat.npy": "shape [28]",
        "cut.npy": "cut off at image 7",
        "text.npy": "not a NumPy array",
        "other.npz": "pictures",
        "text.npz": "not an .npz",
        "damaged.npz": "image",
        "objects.npz": "object",
        "dot.png": "1 x 1 pixels",
        "text.png": "no PNG, JPEG",
        "rows.txt": "no reader",
    }


def test_files_without_images_are_refused(project: Path, model: LoadedModel) -> None:
    for name, word in write_bad_files(project).items():
        with pytest.raises((DataError, UsageError)) as caught:
            list(model.predict_files(project / name))
        assert word in str(caught.value), name
        assert name in str(caught.value)


def test_a_folder_of_pictures_is_measured(project: Path, model: LoadedModel, tmp_path: Path) -> None:
    from PIL import Image

    archive = np.load(project / "new.npz")
    for number, (image, label) in enumerate(zip(archive["images"], archive["labels"], strict=True)):
        folder = tmp_path / "june" / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    (tmp_path / "june" / CLASSES[3] / "torn.png").write_bytes(b"torn")
    found = Project(project)
    run = found.existing_run("main")
    with pytest.raises(DataError, match=r"june/dress/torn.png cannot be used"):
        evaluate_files(run, found, [tmp_path / "june"])
    (data,) = evaluate_files(run, found, [tmp_path / "june"], overrides=["data.errors=skip"]).datasets
    whole = json.loads((project / "test_report.json").read_text())
    assert (data.name, len(data.digest)) == (str(tmp_path / "june"), 64)
    assert data.metrics["examples"] == 50
    assert data.metrics["accuracy"] == whole["accuracy"]
    assert data.metrics["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    (tmp_path / "june/unknown").mkdir()
    Image.fromarray(archive["images"][0]).save(tmp_path / "june/unknown/0.png")
    with pytest.raises(DataError, match=r"'unknown' .*data\.classes"):
        evaluate_files(run, found, [tmp_path / "june"], overrides=["data.errors=skip"])


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"images": np.zeros((2, 28, 28), np.uint8)}, "labels"),
        ({"images": np.zeros((2, 28, 28), np.uint8), "labels": np.array([0, 10])}, "from 0 to 9"),
        ({"images": np.zeros((2, 28, 28, 3), np.uint8), "labels": np.array([0, 1])}, "[28, 28, 1]"),
    ],
)
def test_data_sets_that_do_not_fit(project: Path, tmp_path: Path, arrays: dict[str, np.ndarray], word: str) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)
    found = Project(project)
    with pytest.raises(DataError) as caught:
        evaluate_files(found.existing_run("main"), found, [tmp_path / "odd.npz"])
    assert word in str(caught.value)
