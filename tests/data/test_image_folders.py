"""Folders and lists of pictures as data sets: splits, the cache, workers, and what is said about bad ones."""

from __future__ import annotations

import importlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from aifx.core import file_states
from aifx.core.artifact import MANIFEST
from aifx.core.code_digest import Code
from aifx.core.digests import sha256_of_file
from aifx.core.errors import AifxError, ConfigError, DataError
from aifx.core.file_states import FileState
from aifx.core.project import Project
from aifx.data import file_index, row_cache
from aifx.data.arrays import ArrayDataset, array_source
from aifx.data.images import ImageFormat, Picture, StoredImages, open_images
from aifx.data.picture_lists import list_pictures
from aifx.data.readers import pictures
from aifx.data.readers.rows import input_file
from aifx.data.sections import ImagesSection
from aifx.data.splits import Split

SPLITS: list[Split] = ["train", "validation", "test"]
ALL = slice(None)
Paint = Callable[..., Path]


def pixels(seed: int, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


@pytest.fixture
def paint(project: Project) -> Paint:
    """Saves a random picture of the project's data folder."""

    def paint(name: str, seed: int, size: tuple[int, int] = (12, 16)) -> Path:
        path = project.root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed, size)).save(path)
        return path

    return paint


@pytest.fixture
def folder(paint: Paint) -> None:
    """40 pictures of good parts, 12 of bad ones."""
    for seed in range(52):
        paint(f"parts/{'good' if seed < 40 else 'bad'}/{seed:02}.png", seed)


def open_(project: Project, path: str = "data/parts", **keys: Any) -> ArrayDataset:
    section = ImagesSection(**{"path": path, "image_size": (12, 16), "workers": 0, **keys})
    form, data = ImageFormat.open(section, project, project.root)
    assert form.spec == data.spec
    return data


def labels(data: ArrayDataset) -> dict[Split, Counter[int]]:
    return {split: Counter(np.asarray(arrays["targets"]).tolist()) for split, arrays in data.splits.items()}


def seeds(data: ArrayDataset, split: Split) -> list[int]:
    """Which of the first pictures a split has, in order."""
    known = {pixels(seed).tobytes(): seed for seed in range(60)}
    images = data.splits[split]["inputs"]
    return [known[image.tobytes()] for image in images[np.arange(len(images))]]


@pytest.mark.usefixtures("folder")
def test_a_folder_of_classes_is_split_by_class_and_seed(project: Project) -> None:
    data = open_(project, validation_fraction=0.25, test_fraction=0.2)
    assert data.spec.classes == ("bad", "good")
    assert data.spec.fields["inputs"].shape == (12, 16, 3)
    assert labels(data) == {
        "train": Counter({0: 7, 1: 22}),
        "validation": Counter({0: 3, 1: 10}),
        "test": Counter({0: 2, 1: 8}),
    }
    found = {split: seeds(data, split) for split in SPLITS}
    assert sorted(seed for split in SPLITS for seed in found[split]) == list(range(52))
    assert all((np.array(found[split]) < 40).tolist() == data.splits[split]["targets"].astype(bool).tolist()
               for split in SPLITS)  # fmt: skip
    again = open_(project, validation_fraction=0.25, test_fraction=0.2)
    assert {split: seeds(again, split) for split in SPLITS} == found
    assert again.digest == data.digest
    other = open_(project, validation_fraction=0.25, test_fraction=0.2, split_seed=1)
    assert labels(other) == labels(data)
    assert seeds(other, "test") != found["test"]
    assert other.digest != data.digest


@pytest.mark.usefixtures("folder")
def test_a_split_that_has_a_folder_is_that_folder(project: Project, paint: Paint) -> None:
    os.rename(project.root / "data/parts", project.root / "data/train")
    for seed in (52, 53):
        paint(f"test/{'good' if seed < 53 else 'bad'}/{seed}.png", seed)
    data = open_(project, "data", validation_fraction=0.1)
    assert seeds(data, "test") == [53, 52]
    assert labels(data)["validation"] == Counter({0: 1, 1: 4})
    for seed in (54, 55):
        paint(f"val/{'good' if seed < 55 else 'bad'}/{seed}.png", seed)
    assert seeds(open_(project, "data"), "validation") == [55, 54]
    assert len(seeds(open_(project, "data"), "train")) == 52


@pytest.mark.usefixtures("folder")
def test_copies_stay_in_one_split(project: Project, paint: Paint, caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(40):
        paint(f"parts/good/copy-{seed}.png", seed)
    data = open_(project, validation_fraction=0.3, test_fraction=0.3)
    found = [set(seeds(data, split)) for split in SPLITS]
    assert sum(map(len, found)) == len(set.union(*found)) == 52
    paint("parts/bad/same.png", 3)
    open_(project)
    assert "data/parts/bad/same.png and data/parts/good/03.png" in caplog.text


def test_rare_sets_of_labels_stay_together(project: Project, paint: Paint) -> None:
    names = ("crack", "dent", "rust", "scratch", "spot")
    sets = [[name for bit, name in enumerate(names) if number >> bit & 1] for number in range(32)]
    files = [paint(f"{seed:02}.png", seed).name for seed in range(52)]
    lines = [f"{file},{';'.join(chosen)}" for file, chosen in zip(files, [*sets, *[["dent"]] * 20], strict=True)]
    data = open_(project, write_list(project, "\n".join(["file,labels", *lines])), test_fraction=0.25)
    assert len(seeds(data, "test")) == 8 + 5  # of 31 rare sets, and of 21 dents
    assert len(seeds(data, "validation")) > 0


def test_a_data_set_too_small_to_hold_any_out_is_warned_of(
    project: Project, paint: Paint, caplog: pytest.LogCaptureFixture
) -> None:
    for seed, name in enumerate(["good", "bad"]):
        paint(f"parts/{name}/{seed}.png", seed)
    open_(project)
    assert "too few pictures" in caplog.text


@pytest.mark.usefixtures("folder")
def test_a_folder_is_predicted_without_the_pictures_that_are_skipped(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    (project.root / "data/parts/good/torn.png").write_bytes(b"no picture")
    file = input_file(str(project.root / "data/parts"))
    spec = open_(project, errors="skip").spec
    strict, skipping = (
        ImageFormat.load(ImagesSection(image_size=(12, 16), errors=errors), spec, project.root)
        for errors in ("strict", "skip")
    )
    with pytest.raises(DataError, match=r"torn\.png cannot be used"):
        list(strict.read_rows(file))
    caplog.clear()
    assert len(list(skipping.read_rows(file))) == 52
    assert "torn.png cannot be used" in caplog.text


def in_unit(data: ArrayDataset, split: Split) -> list[float]:
    """The numbers of a split's pictures in the unit of the list."""
    arrays = data.splits[split]
    values: list[float] = (arrays["targets"] * arrays["scale"] + arrays["location"]).tolist()
    return values


def write_list(project: Project, text: str) -> str:
    (project.root / "data/list.csv").write_text(text)
    return "data/list.csv"


@pytest.mark.usefixtures("folder")
def test_lists(project: Project) -> None:
    names = [f"parts/{'good' if seed < 40 else 'bad'}/{seed:02}.png" for seed in range(20, 52)]
    rows = "".join(f"{name},{index % 3},{'test' if index > 26 else ''}\n" for index, name in enumerate(names))
    data = open_(project, write_list(project, "file,label,split\n" + rows))
    assert data.spec.classes == ("0", "1", "2")
    assert seeds(data, "test") == list(range(47, 52))
    assert data.splits["test"]["targets"].tolist() == [0, 1, 2, 0, 1]
    rows = "".join(f"{name},{index / 4}\n" for index, name in enumerate(names))
    values = open_(project, write_list(project, "file,value\n" + rows))
    assert (values.spec.classes, values.spec.target_size) == ((), 1)
    assert values.spec.fields["targets"].dtype == "float32"
    by_picture = {
        seed: value
        for split in SPLITS
        for seed, value in zip(seeds(values, split), in_unit(values, split), strict=True)
    }
    assert by_picture == pytest.approx({seed: (seed - 20) / 4 for seed in range(20, 52)}, abs=1e-5)
    standardized = values.splits["train"]["targets"]
    assert (standardized.mean(), standardized.std()) == pytest.approx((0, 1), abs=1e-5)
    rows = "".join(f"{name},{('', 'dent', 'dent; scratch')[index % 3]}\n" for index, name in enumerate(names))
    several = open_(project, write_list(project, "file,labels\n" + rows), test_fraction=0)
    assert several.spec.classes == ("dent", "scratch")
    assert several.spec.target_size == 2
    expected = [[0, 0], [1, 0], [1, 1]]
    for seed, target in zip(seeds(several, "train"), several.splits["train"]["targets"].tolist(), strict=True):
        assert target == expected[(seed - 20) % 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,name\nparts/good/00.png,a\n", ["list.csv does not say", "file, name", "label"]),
        ("file,label,value\nparts/good/00.png,a,1\n", ["list.csv does not say"]),
        ("file,label\nparts/good/00.png,\n", ["list.csv:2: no label"]),
        ("file,label\n,a\n", ["list.csv:2: no file"]),
        ("file,value\nparts/good/00.png,1\nparts/good/01.png,heavy\n", ["list.csv:3: 'heavy' is not a number"]),
        ("file,value\nparts/good/00.png,nan\n", ["list.csv:2: 'nan'"]),
        ("file,label,split\nparts/good/00.png,a,tset\n", ["list.csv:2: no split 'tset'", "'test'"]),
        ("file,label\nparts/good/00.png,a\nparts/none.png,b\n", ["list.csv:3: parts/none.png", "No such file"]),
        ("file,label\n", ["list.csv has no pictures"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_bad_lists_are_named(project: Project, text: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        open_(project, write_list(project, text))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_any_number_of_workers_gives_the_same_batches(
    project: Project, workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (project.root / "data/parts/good/07.png").write_bytes(b"torn")
    expected = open_(project, errors="skip")
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "another"))
    monkeypatch.setattr(pictures, "FEW", 0)
    found = open_(project, errors="skip", workers=workers)
    assert found.digest == expected.digest
    for seed, split in ((0, "train"), (None, "train"), (None, "test")):
        ours, theirs = (data.source(split, 8, seed=seed).read(0, ALL) for data in (found, expected))  # type: ignore[arg-type]
        for name in theirs:
            assert np.array_equal(ours[name], theirs[name])


@pytest.mark.usefixtures("folder")
def test_a_picture_that_kills_its_worker_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pictures, "FEW", 0)
    code = """
    import os
    from aifx.data.readers import pictures
    real, share = pictures.decode, pictures._decode_share
    def decode_share(*args):
        pictures.decode = lambda s, g: os.abort() if s.name.endswith('11.png') else real(s, g)
        yield from share(*args)
    """
    (tmp_path / "crashing.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pictures, "_decode_share", importlib.import_module("crashing").decode_share)
    with pytest.raises(DataError) as caught:
        open_(project, workers=2)
    assert caught.value.what == "data/parts/good/11.png cannot be used"
    assert "(signal 6" in caught.value.why
    data = open_(project, workers=2, errors="skip")
    assert sorted(seed for split in SPLITS for seed in seeds(data, split)) == [seed for seed in range(52) if seed != 11]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of pictures that were decoded."""
    counted = Counter[str]()
    real = pictures.decode

    def decode(*args: Any) -> np.ndarray:
        counted["decoded"] += 1
        return real(*args)

    monkeypatch.setattr(pictures, "decode", decode)
    return counted


@pytest.mark.usefixtures("folder")
def test_pictures_are_decoded_once(project: Project, decoded: Counter[str]) -> None:
    first = open_(project)
    assert decoded["decoded"] == 52
    for keys in ({}, {"validation_fraction": 0.3}, {"sampling": "balanced"}, {"workers": 1}):
        open_(project, **keys)
    assert decoded["decoded"] == 52
    assert open_(project, image_size=(6, 8)).spec.fields["inputs"].shape == (6, 8, 3)
    assert decoded["decoded"] == 104
    path = project.root / "data/parts/good/07.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert open_(project).digest == first.digest
    Image.fromarray(pixels(59)).save(path)
    assert open_(project).digest != first.digest


def test_a_picture_of_the_same_size_and_time_is_decoded_again(project: Project, paint: Paint) -> None:
    paths = [paint(f"parts/{seed % 2}/{seed}.bmp", seed) for seed in range(8)]
    first = open_(project, validation_fraction=0)
    before = paths[3].stat()
    while paths[3].stat().st_ctime_ns == before.st_ctime_ns:
        paint("parts/1/3.bmp", 59)
        os.utime(paths[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert paths[3].stat().st_size == before.st_size
    assert 59 in seeds(open_(project, validation_fraction=0), "train")
    assert 59 not in seeds(first, "train")


@pytest.mark.usefixtures("folder")
def test_pictures_of_the_same_bytes_are_not_decoded_again(
    project: Project, tmp_path: Path, decoded: Counter[str]
) -> None:
    (project.root / "data/parts/good/07.png").write_bytes(b"torn")
    first = open_(project, errors="skip")
    for path in (project.root / "data/parts").glob("*/*.png"):
        path.chmod(0o600)
    assert open_(project, errors="skip").digest == first.digest
    shutil.copytree(project.root, tmp_path / "copy")
    data = open_(Project(tmp_path / "copy"), errors="skip")
    assert (data.digest, decoded["decoded"]) == (first.digest, 52)
    assert seeds(data, "train") == seeds(first, "train")
    (store,) = (tmp_path / "cache/images").iterdir()
    (store / "pixels").unlink()
    assert seeds(open_(project, errors="skip"), "train") == seeds(first, "train")
    assert decoded["decoded"] == 2 * 52


@pytest.mark.usefixtures("folder")
def test_a_picture_that_changes_before_it_is_decoded_is_refused(
    project: Project, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pictures.decode

    def decode(*args: Any) -> np.ndarray:
        paint("parts/good/39.png", 59)
        return real(*args)

    monkeypatch.setattr(pictures, "decode", decode)
    with pytest.raises(DataError, match=r"data/parts/good/39\.png changed while it was read"):
        open_(project)


@pytest.mark.usefixtures("folder")
def test_other_code_decodes_again_and_a_run_goes_on_with_the_same_pixels(
    project: Project, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_(project)
    monkeypatch.setattr(row_cache, "code_digest", lambda *_: Code("other", {}))
    assert (open_(project).digest, decoded["decoded"]) == (first.digest, 2 * 52)
    monkeypatch.setattr(row_cache, "code_digest", lambda *_: Code("brighter", {}))
    real = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda *args: real(*args) | 1)
    assert open_(project).digest != first.digest


def test_only_pictures_that_changed_are_read_for_their_digest(
    project: Project, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_states, "SETTLED_NS", -(10**15))
    read: list[str] = []
    real = file_index.size_and_sha256
    monkeypatch.setattr(file_index, "size_and_sha256", lambda file: read.append(Path(file.name).name) or real(file))
    for seed in range(4):
        paint(f"parts/{seed % 2}/{seed}.png", seed)
    for _ in range(2):
        open_(project, validation_fraction=0)
    assert sorted(read) == ["0.png", "1.png", "2.png", "3.png"]
    paint("parts/1/3.png", 59)
    open_(project, validation_fraction=0)
    assert read[4:] == ["3.png"]
    real_of = FileState.of
    monkeypatch.setattr(FileState, "of", lambda path: replace(real_of(path), is_ctime_real=False))
    for _ in range(2):
        open_(project, validation_fraction=0)
    assert len(read) == 5 + 4, "once, as in an image such as squashfs"


@pytest.mark.usefixtures("folder")
def test_a_damaged_cache_is_repaired(project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = open_(project).source("train", 42, seed=None).read(0, ALL)
    (stored,) = (tmp_path / "cache/images").iterdir()
    content = bytearray((stored / "pixels").read_bytes())
    content[5 * 12 * 16 * 3] ^= 1
    (stored / "pixels").write_bytes(content)
    found = open_(project).source("train", 42, seed=None).read(0, ALL)
    assert np.array_equal(found["inputs"], expected["inputs"])
    (message,) = [record.message for record in caplog.records if "damaged" in record.message]
    name = message.partition("pixels of ")[2].partition(" are damaged")[0]
    content[5 * 12 * 16 * 3] ^= 1
    assert (stored / "pixels").read_bytes() == content
    for damaged in (MANIFEST, "digests.npy"):
        (stored / damaged).write_bytes((stored / damaged).read_bytes()[:-3] + b"abc")
        assert np.array_equal(open_(project).source("train", 42, seed=None).read(0, ALL)["inputs"], expected["inputs"])
    for change in ("short", "linked", "gone"):
        (stored / "pixels").unlink()
        if change == "short":
            (stored / "pixels").write_bytes(content[:-1])
        elif change == "linked":
            (tmp_path / "pixels").write_bytes(content)
            (stored / "pixels").symlink_to(tmp_path / "pixels")
        assert np.array_equal(open_(project).source("train", 42, seed=None).read(0, ALL)["inputs"], expected["inputs"])
        assert not (stored / "pixels").is_symlink()
    content[5 * 12 * 16 * 3] ^= 1
    data = open_(project)
    (stored / "pixels").write_bytes(content)
    Image.fromarray(pixels(59)).save(project.root / name)
    with pytest.raises(DataError, match=f"{name} has changed"):
        data.source("train", 42, seed=None).read(0, ALL)


def copies(folder: Path, count: int, size: tuple[int, int]) -> list[Picture]:
    """A picture by so many names."""
    folder.mkdir()
    first = folder / "0.jpg"
    Image.fromarray(pixels(0, size)).save(first)
    paths = [first, *(folder / f"{number}.jpg" for number in range(1, count))]
    for path in paths[1:]:
        path.hardlink_to(first)
    return [Picture(path, path.name) for path in paths]


@pytest.mark.usefixtures("project")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    files = copies(tmp_path / "many", 1500, (64, 64))
    tracemalloc.start()
    try:
        contents = dict.fromkeys((str(file.path) for file in files), sha256_of_file(files[0].path))
        store = open_images(files, contents, ImagesSection(image_size=(64, 64), channels=3, workers=0))
        images = StoredImages(store, np.arange(len(files)))
        source = array_source({"inputs": images}, None, 8)  # type: ignore[dict-item]  # as in open_pictures
        for step in range(len(files) // 8):
            source.read(step, ALL)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    images_bytes = 1500 * 64 * 64 * 3
    assert peak < images_bytes / 6


@pytest.mark.usefixtures("project")
@pytest.mark.slow
def test_an_interrupt_while_decoding_leaves_nothing(tmp_path: Path) -> None:
    """Each worker decodes five pictures and hangs in the next."""
    copies(tmp_path / "pictures", 300, (16, 16))
    held = """
    import time
    from aifx.data.readers import pictures
    decode, decoded, share = pictures.decode, [], pictures._decode_share
    def decode_five(stream, geometry):
        decoded.append(stream)
        if len(decoded) > 5:
            time.sleep(3600)
        return decode(stream, geometry)
    def decode_share(*args):
        pictures.decode = decode_five
        yield from share(*args)
    """
    (tmp_path / "held.py").write_text(textwrap.dedent(held))
    code = """
    import sys
    from pathlib import Path
    import held
    from aifx.core.digests import sha256_of_file
    from aifx.data.images import Picture, open_images
    from aifx.data.readers import pictures
    from aifx.data.sections import ImagesSection
    pictures._decode_share = held.decode_share
    files = [Picture(path, path.name) for path in Path(sys.argv[1]).iterdir()]
    contents = {str(file.path): sha256_of_file(file.path) for file in files}
    open_images(files, contents, ImagesSection(image_size=(64, 64), channels=3, workers=2))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "pictures")]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
    stores = tmp_path / "cache/images"

    def has_started() -> bool:
        return any(np.fromfile(path, np.uint8, 4096).any() for path in stores.glob("*/pixels"))

    deadline = time.monotonic() + 120
    workers: list[psutil.Process] = []
    while not has_started() or len(workers) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=120)[1]
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert not alive
    assert not list(stores.glob("*/pixels"))


def test_grey_pictures_have_one_channel(project: Project) -> None:
    for seed in range(20):
        path = project.root / f"data/parts/{seed % 2}/{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).convert("L").save(path)
    assert open_(project).spec.fields["inputs"].shape == (12, 16, 1)
    assert open_(project, channels=3).spec.fields["inputs"].shape == (12, 16, 3)
    Image.fromarray(pixels(0)).save(project.root / "data/parts/0/0.png")
    assert open_(project).spec.fields["inputs"].shape == (12, 16, 3)
    assert open_(project, image_size=None).spec.fields["inputs"].shape == (224, 224, 3)


def remove(project: Project, pattern: str) -> None:
    for path in (project.root / "data/parts").glob(pattern):
        path.unlink()


def one_class(project: Project, paint: Paint) -> None:
    remove(project, "bad/*")
    (project.root / "data/parts/bad").rmdir()


def no_classes(project: Project, paint: Paint) -> None:
    one_class(project, paint)
    os.rename(project.root / "data/parts/good", project.root / "data/parts/.good")


def in_two_splits(project: Project, paint: Paint) -> None:
    os.rename(project.root / "data/parts", project.root / "data/train")
    os.renames(project.root / "data/train", project.root / "data/parts/train")
    paint("parts/test/good/again.png", 5)
    paint("parts/test/bad/new.png", 55)


@pytest.mark.usefixtures("folder")
def test_an_empty_folder_is_no_class_and_named(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    (project.root / "data/parts/scratched").mkdir()
    listing = list_pictures(project.root / "data/parts", "data/parts")
    assert listing.classes == ("bad", "good")
    assert "data/parts/scratched" in caplog.text


BAD: list[Any] = [
    (lambda p, _: (p.root / "data/parts/good/torn.jpg").write_bytes(b"\xff\xd8\xff"), {}, "good/torn.jpg cannot be"),
    (lambda _, paint: paint("parts/good/dot.png", 1, (1, 1)), {}, "good/dot.png cannot be used\nit has 1 x 1 pixels"),
    (
        lambda p, _: os.mkfifo(p.root / "data/parts/bad/pipe.png"),
        {},
        "bad/pipe.png cannot be used\nit is not a regular",
    ),
    (lambda p, _: remove(p, "bad/*"), {}, "data/parts has one class only"),
    (one_class, {}, "data/parts has one class only"),
    (no_classes, {}, "data/parts has no folders of classes"),
    (in_two_splits, {}, "train/good/05.png is in two splits\nit is the same picture as data/parts/test/good/again.png"),
    (lambda *_: None, {"classes": ("good", "fine")}, "'bad' is not one of data.classes"),
    (lambda *_: None, {"classes": ("good", "bad", "worse")}, "a class without images: 'worse'"),
    (lambda *_: None, {"channels": 2}, "data.channels = 2 cannot be used with pictures"),
    (lambda *_: None, {"path": "data/list.txt"}, "data.path = 'data/list.txt' cannot be used"),
]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("spoil", "keys", "words"), BAD)
def test_bad_folders_are_named(project: Project, paint: Paint, spoil: Any, keys: Any, words: str) -> None:
    spoil(project, paint)
    with pytest.raises(AifxError) as caught:
        open_(project, **keys)
    assert words in str(caught.value)
    assert caught.value.hint


@pytest.mark.usefixtures("folder")
def test_what_is_skipped_is_counted_and_listed(
    project: Project, paint: Paint, caplog: pytest.LogCaptureFixture
) -> None:
    in_two_splits(project, paint)
    (project.root / "data/parts/train/good/torn.jpg").write_bytes(b"\xff\xd8\xff")
    (project.root / "data/parts/train/good/notes.txt").write_text("no picture")
    caplog.set_level(logging.INFO)
    data = open_(project, errors="skip")
    assert sorted(seed for split in SPLITS for seed in seeds(data, split)) == [*range(52), 55]
    assert 5 in seeds(data, "test")
    text = caplog.text
    assert text.count("1 of 55 pictures") == 2
    assert "data/parts/train/good/torn.jpg: " in text
    assert re.search("data/parts/train/good/05.png: .*data/parts/test/good/again.png", text)
    assert "data/parts/train/good/notes.txt" in text


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_balanced_sampling_and_weights(project: Project) -> None:
    data = open_(project, sampling="balanced", test_fraction=0, validation_fraction=0)
    source = data.source("train", 8, seed=3)
    batches = [source.read(step, ALL) for step in range(20)]  # 80 draws of each class
    targets = np.concatenate([batch["targets"] for batch in batches])
    assert Counter(targets.tolist()) == {0: 80, 1: 80}
    assert all(batch["weights"].tolist() == [1] * 8 for batch in batches)
    known = {pixels(seed).tobytes(): seed for seed in range(52)}
    drawn = Counter(known[image.tobytes()] for batch in batches for image in batch["inputs"])
    assert {drawn[seed] for seed in range(40)} == {2}
    assert {drawn[seed] for seed in range(40, 52)} <= {6, 7}
    parts = [source.read(4, rows) for rows in (slice(0, 3), slice(3, 8))]
    for name, values in batches[4].items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), values)
    weighted = open_(project, class_weights="balanced", test_fraction=0, validation_fraction=0)
    batch = weighted.source("train", 52, seed=3).read(0, ALL)
    totals = [batch["weights"][batch["targets"] == label].sum() for label in (0, 1)]
    assert totals == pytest.approx([26, 26])
    assert (weighted.source("train", 52, seed=None).read(0, ALL)["weights"] == 1).all()


def test_numbers_cannot_be_balanced(project: Project, paint: Paint) -> None:
    rows = "".join(f"{paint(f'{seed}.png', seed).name},{seed}\n" for seed in range(20))
    path = write_list(project, "file,value\n" + rows)
    with pytest.raises(ConfigError, match=r"data.sampling = \"balanced\""):
        open_(project, path, sampling="balanced")


@pytest.mark.usefixtures("folder")
def test_numbers_of_other_pictures_are_scaled_as_those_of_training(project: Project) -> None:
    text = "file,value\n" + "".join(f"parts/bad/{seed}.png,{1000 * seed}\n" for seed in range(40, 52))
    section = ImagesSection(path=write_list(project, text), image_size=(12, 16))
    form, data = ImageFormat.open(section, project, project.root)
    assert data.spec.target_scale > 1000
    (project.root / "data/other.csv").write_text("file,value\nparts/good/01.png,7\nparts/good/02.png,-3000\n")
    other = form.open_file(project.root / "data/other.csv")
    assert in_unit(other, "test") == pytest.approx([7, -3000], abs=0.01)
    assert other.spec == data.spec
    encoded = form.encode({"image": pixels(0)})
    assert {name: values.shape for name, values in encoded.items() if name != "inputs"} == {
        "location": (1,),
        "scale": (1,),
    }


@pytest.mark.usefixtures("folder")
def test_the_spec_is_known_without_a_picture(project: Project) -> None:
    section = ImagesSection(path="data/parts", image_size=(12, 16), channels=3)
    assert ImageFormat.describe(section, project) == open_(project).spec
    with pytest.raises(ConfigError, match=r"data\.channels is not set"):
        ImageFormat.describe(ImagesSection(path="data/parts"), project)
    assert section.read_beginnings(project) == 52
    (project.root / "data/parts/bad/40.png").write_text("torn")
    with pytest.raises(DataError, match=r"bad/40\.png"):
        section.read_beginnings(project)
    assert section.model_copy(update={"errors": "skip"}).read_beginnings(project) == 52
