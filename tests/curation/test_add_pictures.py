"""Folders and lists of pictures as versions: what they show is what training on the same files reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
from adding import add, environ_of, rows_of
from PIL import Image

from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.curation.add_plan import plan_add, with_listed
from aifx.data.arrays import ArrayDataset
from aifx.data.images import ImageFormat
from aifx.data.readers.base import ReadOptions
from aifx.data.readers.sources import list_sources
from aifx.data.sections import ImagesSection
from aifx.data.versions.catalog import open_catalog

COUNT = 24


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    for number in range(COUNT):
        paint(tmp_path / f"project/pictures/{number:02}.png", number)
    return Project(tmp_path / "project")


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3)).astype(np.uint8)).save(path)


def write_list(project: Project, columns: str, row: Callable[[int], str]) -> Path:
    path = project.root / "list.csv"
    path.write_text("\n".join([columns, *(f"pictures/{number:02}.png,{row(number)}" for number in range(COUNT))]))
    return path


def opened(project: Project, **keys: Any) -> ArrayDataset:
    section = ImagesSection(**{"image_size": (6, 5), "workers": 0, "validation_fraction": 0.2, **keys})
    return ImageFormat.open(section, project, project.root)[1]


LISTS: list[Any] = [
    ("file,label,split", lambda n: f"{'ab'[n % 2]},{('', 'test', 'val')[n % 3]}", "label"),
    ("file,labels", lambda n: ("", "dent", "scratch; dent")[n % 3], "labels"),
    ("file,value,split", lambda n: f"{n / 7},", "value"),
]


@pytest.mark.parametrize(("columns", "row", "target"), LISTS)
def test_a_list_is_trained_on_as_its_version(project: Project, columns: str, row: Any, target: str) -> None:
    write_list(project, columns, row)
    version = add(project.root, "parts", "list.csv", kind="images").version
    assert set(version.manifest.columns) >= {"image", target}
    assert ("_split" in version.manifest.columns) == (row(1).endswith("test"))
    of_list, of_version = opened(project, path="list.csv"), opened(project, dataset="parts")
    assert of_version.digest == of_list.digest
    assert of_version.spec == of_list.spec
    for split, arrays in of_list.splits.items():
        places = np.arange(len(arrays["targets"]))
        for name, values in arrays.items():
            np.testing.assert_array_equal(values[places], of_version.splits[split][name][places])


@pytest.mark.parametrize("in_splits", [False, True])
def test_a_folder_is_trained_on_as_its_version(project: Project, in_splits: bool) -> None:
    """The class is the first folder, below that of a split, however deep a picture is."""
    for number in range(COUNT):
        split = f"{'train' if number % 4 else 'Test'}/" if in_splits else ""
        paint(project.root / f"parts/{split}{'ab'[number % 2]}/{number % 3}/{number:02}.png", number)
    (project.root / "parts/c").mkdir(exist_ok=True)
    if in_splits:
        paint(project.root / "parts/c/other.png", 99)
    version = add(project.root, "parts", "parts", kind="images").version
    assert {row["label"] for row in rows_of(version)} == {"a", "b"}
    assert ("_split" in version.manifest.columns) == in_splits
    assert opened(project, dataset="parts").digest == opened(project, path="parts").digest


@pytest.mark.parametrize("form", ["{}", "{}/**/*.png", "file://{}", "{}/", "file://{}/*/*/*.png"])
def test_classes_do_not_depend_on_how_a_folder_is_named(project: Project, form: str) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png", "0.png"):
        paint(project.root / "parts [1]/" / name, 1)
    folder = str(project.root / "parts [1]")
    if "*" in form:
        os.rename(folder, folder := str(project.root / "parts"))
    listing = list_sources([form.format(folder)], project.root)
    assert {(file.target, file.split) for file in listing.files} == {("a", "train"), ("b", "train"), ("a", "test")}


def test_a_changed_row_of_a_list_is_read_again_alone(project: Project) -> None:
    write_list(project, "file,label", lambda n: "ab"[n % 2])
    first = add(project.root, "parts", "list.csv", kind="images").version
    write_list(project, "file,label", lambda n: "ab"[n % 2] if n != 3 else "a")
    second = add(project.root, "parts", "list.csv", kind="images").version
    before, after = ({row["_source"]: row["label"] for row in rows_of(version)} for version in (first, second))
    assert after == {**before, "pictures/03.png": "a"}


def test_the_step_of_another_list_is_another_step(project: Project) -> None:
    """Otherwise a command that goes on after a kill would keep rows with the labels of the list before."""
    argument = [str(project.root / "list.csv")]
    steps = []
    for label in "aab":
        write_list(project, "file,label", lambda n, label=label: label)  # type: ignore[misc]
        listing = with_listed(list_sources(argument, project.root), argument, project.root)
        step = plan_add(open_catalog(str(project.root)), "parts", listing, ReadOptions("images"), "MIT").step
        assert step is not None
        steps.append(step.settings)
    assert steps[0] == steps[1] != steps[2]


def test_a_list_does_not_leave_its_folder(project: Project) -> None:
    """A list of a stranger could add any picture of this machine."""
    paint(project.root.parent / "private/1.png", 1)
    (project.root / "given").mkdir()
    (project.root / "given/link.png").symlink_to("../../private/1.png")
    paint(project.root / "given/0.png", 0)
    names = ["0.png", "link.png", "../../private/1.png", str(project.root.parent / "private/1.png")]
    (project.root / "given/list.csv").write_text("\n".join(["file,label", *(f"{name},a" for name in names)]))
    argument = [str(project.root / "given/list.csv")]
    listing = with_listed(list_sources(argument, project.root), argument, project.root)
    assert [file.name for file in listing.files] == ["given/0.png"]
    assert set(listing.links) == {"given/link.png", str(project.root.parent / "private/1.png")}
    followed = with_listed(list_sources(argument, project.root), argument, project.root, follow_links=True)
    assert (len(followed.files), followed.links) == (3, ())


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["file,label"], ["list.csv has no pictures"]),
        ([], ["list.csv has no pictures"]),
        (["file,label", "pictures/00.png,a", "pictures/none.png,b"], ["list.csv:3", "none.png"]),
        (["file,label", "pictures/00.png,a", "pictures/00.png,b"], ["list.csv:3", "00.png"]),
        (["file,label", "pictures,a"], ["list.csv:2", "pictures"]),
        (["file,value", "pictures/00.png,heavy"], ["list.csv:2", "heavy"]),
        (["file,name", "pictures/00.png,a"], ["list.csv", "file, name"]),
    ],
)
def test_bad_lists_are_named(project: Project, lines: list[str], words: list[str]) -> None:
    (project.root / "list.csv").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        add(project.root, "parts", "list.csv", kind="images")
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint


def test_pictures_of_a_data_set_have_targets_of_one_kind(project: Project) -> None:
    write_list(project, "file,value", lambda n: str(n))
    add(project.root, "parts", "list.csv", kind="images")
    paint(project.root / "more/good/1.png", 77)
    with pytest.raises(DataError, match=r"label and value|value and label"):
        add(project.root, "parts", "more", kind="images")


def test_the_command_adds_a_list(project: Project) -> None:
    write_list(project, "file,labels,split", lambda n: f"{('', 'dent', 'dent;rust')[n % 3]},{'test' if n > 20 else ''}")
    command = [
        "data",
        "add",
        "parts",
        "list.csv",
        "--kind",
        "images",
        "--license",
        "CC0-1.0",
        "--root",
        "sets",
        "--json",
    ]
    done = inprocess.run(command, project.root, environ_of(project.root.parent))
    assert json.loads(done.stdout)["rows"] == COUNT, done.stderr
    profile = inprocess.run(["data", "profile", "parts", "--root", "sets", "--json"], project.root, os.environ)
    columns = json.loads(profile.stdout)["profile"]["columns"]
    assert columns["labels"]["distinct"] == 3
    assert columns["_split"]["values"] == {"test": 3}
