"""A folder of pictures leads to a prediction in four commands; `aifx init` reads the pictures for its settings."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import inprocess
import numpy as np
import pytest
import tomli
from PIL import Image

from aifx.scaffold.own_data import mirrored, picture_settings


def aifx(folder: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = inprocess.run(args, folder, {**os.environ, "AIFX_CACHE_DIR": str(folder.parent / "cache")})
    assert done.returncode == code, done.stderr + done.stdout
    return done


def save(path: Path, seed: int, *, is_dark: bool, size: tuple[int, int] = (300, 400), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)
    if is_dark:
        pixels[size[0] // 2 :] //= 8
    Image.fromarray(pixels).resize(size[::-1]).convert(mode).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 bright photos and 10 with a dark half, of about 400 x 300 pixels."""
    for seed in range(40):
        name = f"my photos/{'dark' if seed < 10 else 'bright'}/{seed}.jpg"
        save(tmp_path / name, seed, is_dark=seed < 10, size=(300 + seed % 2, 400))
    return tmp_path / "my photos"


@pytest.mark.representative("pictures of one's own")
def test_from_pictures_to_a_prediction_in_four_commands(photos: Path, tmp_path: Path) -> None:
    aifx(tmp_path, "init", "parts", "--template", "vision-inspection", "--yes", "--answer", "data=my photos")
    project = tmp_path / "parts"
    settings = tomli.loads((project / "aifx.toml").read_text())
    assert settings["data"] == {
        "path": "../my photos",
        "classes": ["bright", "dark"],
        "image_size": [192, 256],
        "channels": 3,
        "validation_fraction": 0.15,
        "test_fraction": 0.15,
        "sampling": "balanced",
    }
    assert settings["eval"]["gates"] == ["balanced_accuracy >= 0.60"]
    assert (settings["model"]["block"], settings["train"]["num_steps"]) == ("basic", 200)
    assert 0.2 < settings["model"]["pixel_mean"][0] < 0.8
    assert "balanced_accuracy >= 0.50" in (project / "ci/gate.sh").read_text()
    assert os.access(project / "ci/gate.sh", os.X_OK)
    assert not (project / "data").exists()
    readme = (project / "README.md").read_text()
    assert "40 in `../my photos`" in readme
    assert "at most about 5 minutes" in readme
    assert "Fashion" not in readme
    aifx(project, "config", "check")
    small = (
        "train.num_steps=30",
        "model.norm_groups=2",
        "optimizer.learning_rate=0.02",
        "train.global_batch_size=16",
        "train.validate_every=15",
        "data.image_size=[16,24]",
    )
    aifx(project, "train", "--set", "model.channels=[8]", "--set", "schedule.warmup_steps=2",
         *(word for setting in small for word in ("--set", setting)))  # fmt: skip
    report = json.loads(aifx(project, "eval", "--json").stdout)
    assert report["metrics"]["examples"] == 6  # 15 % of each class: 4 or 5 bright ones, 2 or 1 dark ones
    assert report["metrics"]["accuracy"] == 1
    new = [save(tmp_path / f"new/{kind}/1.png", 99, is_dark=kind == "dark") for kind in ("dark", "bright")]
    found = aifx(project, "predict", *map(str, new)).stdout.splitlines()
    assert [json.loads(line)["label"] for line in found] == ["dark", "bright"]
    measured = json.loads(aifx(project, "eval", "--data", str(tmp_path / "new"), "--json").stdout)
    assert measured["datasets"][0]["metrics"]["examples"] == 2


def test_a_list_of_grey_pictures(tmp_path: Path) -> None:
    rows = "".join(
        f"{save(tmp_path / f'set/{seed}.png', seed, is_dark=False, size=(20, 30), mode='L').name},{seed % 3}\n"
        for seed in range(9)
    )
    (tmp_path / "set/labels.csv").write_text("file,label\n" + rows)
    made = json.loads(
        aifx(tmp_path, "init", "x", "-t", "vision-inspection", "-a", "data=set/labels.csv", "--json").stdout
    )
    data = tomli.loads((tmp_path / "x/aifx.toml").read_text())["data"]
    assert "data/README.md" not in made["files"]
    assert (data["path"], data["channels"], data["image_size"]) == ("../set/labels.csv", 1, [40, 60])
    assert (data["classes"], data.get("sampling")) == (["0", "1", "2"], None)
    settings = tomli.loads((tmp_path / "x/aifx.toml").read_text())
    assert (settings["eval"]["gates"], settings["train"]["num_steps"]) == (["accuracy >= 0.47"], 200)
    assert "block" not in settings["model"]


@pytest.mark.slow
def test_several_labels_of_a_picture_from_a_list_to_a_prediction(tmp_path: Path) -> None:
    """A picture has stripes across, along, both or none."""
    kinds = [[], ["along"], ["across"], ["across", "along"]]

    def draw(name: str, seed: int, labels: list[str]) -> str:
        pixels = np.random.default_rng(seed).integers(128, 255, (16, 16)).astype(np.uint8)
        pixels[::4] //= 8 if "across" in labels else 1
        pixels[:, ::4] //= 8 if "along" in labels else 1
        Image.fromarray(pixels).save(tmp_path / name)
        return f"{name},{';'.join(labels)}\n"

    rows = [draw(f"{seed}.png", seed, kinds[seed % 4]) for seed in range(120)]
    (tmp_path / "list.csv").write_text("file,labels\n" + "".join(rows))
    aifx(tmp_path, "init", "p", "-t", "vision-inspection", "-a", "data=list.csv")
    project = tmp_path / "p"
    settings = tomli.loads((project / "aifx.toml").read_text())
    assert settings["objective"] == {"kind": "multilabel"}
    assert settings["data"]["classes"] == ["across", "along"]
    assert settings["eval"]["gates"] == ["average_precision >= 0.60"]  # half of the pictures have each class
    assert "several classes, or none" in (project / "README.md").read_text()
    small = (
        "train.num_steps=60",
        "train.validate_every=30",
        "train.global_batch_size=16",
        "augment.flip=none",
        "augment.shift=0",
        "model.dropout=0",
        "schedule.warmup_steps=2",
        "model.channels=[8]",
        "optimizer.kind=adamw",
        "optimizer.learning_rate=0.02",
    )
    aifx(project, "train", *(word for setting in small for word in ("--set", setting)))
    aifx(project, "eval")
    for number in range(4):
        draw(f"new{number}.png", 900 + number, kinds[number])
    lines = aifx(project, "predict", *(f"../new{number}.png" for number in range(4))).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    for name in ("across", "along"):
        by_truth: dict[bool, list[float]] = {True: [], False: []}
        for kind, prediction in zip(kinds, found, strict=True):
            assert (name in prediction["labels"]) == (prediction["probabilities"][name] >= 0.5)
            by_truth[name in kind].append(prediction["probabilities"][name])
        assert min(by_truth[True]) > max(by_truth[False])


@pytest.mark.slow
def test_numbers_of_pictures(tmp_path: Path) -> None:
    rows = "".join(
        f"{save(tmp_path / f'{seed}.png', seed, is_dark=False, size=(20, 30)).name},{seed}\n" for seed in range(10)
    )
    (tmp_path / "list.csv").write_text("file,value\n" + rows)
    aifx(tmp_path, "init", "p", "-t", "vision-inspection", "-a", "data=list.csv")
    settings = tomli.loads((tmp_path / "p/aifx.toml").read_text())
    assert settings["objective"] == {"kind": "regression"}
    assert settings["eval"]["gates"] == ["mean_absolute_error <= 2.38"]  # the mean is off by 2.5
    assert "classes" not in settings["data"]
    assert "average" in (tmp_path / "p/README.md").read_text()
    aifx(tmp_path / "p", "config", "check")
    aifx(tmp_path / "p", "train", "--set", "train.num_steps=1", "--set", "model.channels=[4]")
    predicted = json.loads(aifx(tmp_path / "p", "predict", "../3.png").stdout)["value"]
    assert abs(predicted - 4.5) < 2  # an untrained model predicts the mean


@pytest.mark.parametrize(
    ("rows", "objective", "metric"),
    [
        ("file,labels\n0.jpg,a\n1.jpg,b;a\n2.jpg,\n", "multilabel", "average_precision"),
        ("file,value\n0.jpg,1\n1.jpg,3\n2.jpg,4\n", "regression", "mean_absolute_error"),
    ],
)
def test_large_pictures_without_one_class_each(tmp_path: Path, rows: str, objective: str, metric: str) -> None:
    """Only pictures with one class can be drawn as often from each class, so the others keep their order and gate."""
    for seed in range(3):
        save(tmp_path / f"{seed}.jpg", seed, is_dark=False, size=(256, 384), mode="L")
    (tmp_path / "list.csv").write_text(rows)
    aifx(tmp_path, "init", "p", "-t", "vision-inspection", "-a", "data=list.csv")
    settings = tomli.loads((tmp_path / "p/aifx.toml").read_text())
    assert (settings["objective"]["kind"], settings["eval"]["gates"][0].split()[0]) == (objective, metric)
    assert (settings["data"]["image_size"], settings["augment"]["flip"]) == ([184, 272], "both")
    assert "sampling" not in settings["data"]
    aifx(tmp_path / "p", "config", "check")


def test_small_pictures_of_unequal_classes_are_drawn_equally_often(tmp_path: Path) -> None:
    for seed in range(20):
        save(tmp_path / f"set/{'rare' if seed < 4 else 'usual'}/{seed}.png", seed, is_dark=seed < 4, size=(12, 12))
    aifx(tmp_path, "init", "p", "-t", "vision-inspection", "-a", "data=set")
    settings = tomli.loads((tmp_path / "p/aifx.toml").read_text())
    assert settings["data"]["sampling"] == "balanced"
    assert settings["eval"]["gates"] == ["balanced_accuracy >= 0.60"]
    aifx(tmp_path / "p", "config", "check")


def test_the_training_follows_the_pictures_and_the_minutes() -> None:
    def pixels(count: int, minutes: float, side: int = 300) -> int:
        height, width = picture_settings(count, side, side, minutes, is_seen=True)["image_size"]
        return int(height * width)

    assert pixels(2000, 20) > pixels(2000, 5) > pixels(20_000, 5) >= 64 * 64
    assert pixels(20_000, 5, side=28) == 28 * 28  # small pictures keep their size
    tiny = picture_settings(300, 8, 12, 5, is_seen=True)
    assert (tiny["image_size"], tiny["rotate"]) == ([32, 48], 10)
    assert (tiny["minutes"], picture_settings(300, 300, 300, 0.1, is_seen=True)["minutes"] > 0.1) == (5, True)
    flat = picture_settings(300, 8, 4000, 5, is_seen=True)
    assert flat["image_size"] == [8, 4000]
    few, many = (picture_settings(count, 28, 28, 5, is_seen=True) for count in (300, 20_000))
    assert few["num_steps"] * few["batch_size"] <= 20 * 300  # the number limits the one, the time the other
    assert many["num_steps"] < picture_settings(20_000, 28, 28, 10, is_seen=True)["num_steps"]
    assert few["weight_decay"] > many["weight_decay"]
    marks = picture_settings(2000, 300, 300, 5, is_seen=False)
    assert len(marks["widths"]) == 2
    assert marks["image_size"] > [round(math.sqrt(pixels(2000, 5)))] * 2  # the smaller network has time for more pixels


def test_pictures_are_mirrored_if_they_still_look_like_their_class() -> None:
    clothes = np.load(Path(__file__).parents[2] / "templates/vision-inspection/data/fashion_mnist_small.npz")
    pixels, labels = clothes["train_images"][:500, ..., None] / np.float32(255), clothes["train_labels"][:500].tolist()
    assert mirrored(pixels, labels) == "horizontal"
    assert mirrored(pixels.swapaxes(1, 2), labels) == "vertical"
    arrow = np.tri(12)[:, ::-1] * np.tri(12)
    turns, shifts = np.arange(200) % 4, np.arange(200) % 3
    arrows = np.stack([np.roll(np.rot90(arrow, turn), shift) for turn, shift in zip(turns, shifts, strict=True)])
    assert mirrored(arrows[..., None].astype(np.float32), turns.tolist()) == "none"
    noise = np.random.default_rng(0).normal(size=(200, 8, 8, 1)).astype(np.float32)
    assert mirrored(noise, [i % 2 for i in range(200)]) is None  # neighbours do not tell
    assert mirrored(noise, [float(i) for i in range(200)]) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("nothing", ["data=nothing: there is no such file"]),
        ("my photos/dark", ["my photos/dark has no folders of classes"]),
        ("none.csv", ["none.csv has one class only", "no picture has a label"]),
        ("one.csv", ["one.csv has one class only"]),
        ("torn.csv", ["torn.png cannot be used"]),
    ],
)
def test_data_that_the_template_cannot_use(photos: Path, tmp_path: Path, answer: str, words: list[str]) -> None:
    (tmp_path / "none.csv").write_text("file,labels\nmy photos/dark/1.jpg,\n")
    (tmp_path / "one.csv").write_text("file,label\nmy photos/dark/1.jpg,dark\n")
    (tmp_path / "torn.png").write_bytes(b"torn")
    (tmp_path / "torn.csv").write_text("file,label\ntorn.png,dark\ntorn.png,bright\n")
    failed = aifx(tmp_path, "init", "parts", "-t", "vision-inspection", "-a", f"data={answer}", code=2)
    for word in [*words, "hint:"]:
        assert word in failed.stderr
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("minutes", ["soon", "0", "-1", "nan", "inf"])
def test_minutes_that_are_no_time(photos: Path, tmp_path: Path, minutes: str) -> None:
    answers = ("-a", "data=my photos", "-a", f"minutes={minutes}")
    failed = aifx(tmp_path, "init", "parts", "-t", "vision-inspection", *answers, code=2)
    assert f"minutes={minutes}" in failed.stderr
    assert "hint: --answer minutes=10" in failed.stderr
