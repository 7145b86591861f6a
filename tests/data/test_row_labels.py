"""Labels of rows, by which evaluations group and slice: documents, conversations, series, and columns of each kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.data.arrays import ArrayDataset
from aifx.data.base import TEXT_BYTES, DataFormat, Labels
from aifx.data.chat.format import ChatFormat
from aifx.data.chat.section import ChatSection
from aifx.data.images import ImageFormat
from aifx.data.sections import ImagesSection, SeriesSection, TableSection, TextSection
from aifx.data.series import SeriesFormat
from aifx.data.table import TableFormat
from aifx.data.text import TextData, TextFormat

Write = Callable[..., Path]


def values(form: DataFormat, data: Any, split: Any, column: str | None = None) -> np.ndarray:
    """The label of each example or target as text; "-" for a target of none."""
    found = form.labels(data, split, column)
    assert isinstance(found, Labels)
    return np.array([*found.names, "-"])[found.codes]


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_each_target_of_text_has_its_document(packing: str, write: Write, project: Project) -> None:
    """Targets of one document are its text, whatever windows they are in."""
    texts = [f"{number} " * (3 + number % 9) for number in range(60)]
    write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    keys: dict[str, Any] = {
        "packing": packing,
        "seq_len": 32,
        "tokenizer": "byte",
        "test_fraction": 0.5,
        "validation_fraction": 0,
    }
    section = TextSection(train=("data/*.jsonl",), split="document", **keys)
    form, data = TextFormat.open(section, project, project.root / "assets")
    assert isinstance(data, TextData)
    documents, sizes = values(form, data, "test"), form.sizes(data, "test")["bytes"]
    source = data.source("test", 4, seed=None)
    batches = [source.read(step, slice(None)) for step in range(source.num_batches or 0)]
    rows = len(documents)
    targets, weights = (np.concatenate([one[name] for one in batches])[:rows] for name in ("targets", "weights"))
    assert ((documents != "-") == (weights > 0)).all()
    is_text = (weights > 0) & (targets != data.tokenizer.eos_id)
    names = dict.fromkeys(documents[is_text])
    read = {name: sorted(data.tokenizer.decode(targets[is_text & (documents == name)].tolist())) for name in names}
    assert len(read) == len(data.store.splits["test"].documents) - 1 > 10
    assert all(one in list(map(sorted, texts)) for one in read.values())
    assert (np.concatenate([one[TEXT_BYTES] for one in batches])[:rows] == sizes.sum(axis=1)).all()
    assert sizes.sum() == data.store.splits["test"].num_bytes
    with pytest.raises(DataError, match="no column 'source'"):
        form.labels(data, "test", "source")


def test_each_target_of_a_chat_has_its_line_or_a_column_of_it(write: Write, project: Project) -> None:
    rows = [{"prompt": f"{n}?", "completion": f"{n} " * (n % 7 + 1), "topic": "ab"[n % 2]} for n in range(40)]
    write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    section = ChatSection(train=("data/*.jsonl",), seq_len=96, tokenizer="byte", test_fraction=0.5)
    form, data = ChatFormat.open(section, project, project.root / "assets")
    places, topics = values(form, data, "test"), values(form, data, "test", "topic")
    segments = data.source("test", len(places), seed=None).read(0, slice(None))["segment_ids"]
    assert ((places != "-") == (segments > 0)).all()
    for row in range(len(places)):
        for segment in range(1, segments[row].max() + 1):
            (place,) = set(places[row][segments[row] == segment])
            assert set(topics[row][segments[row] == segment]) == {rows[int(place.rpartition(":")[2]) - 1]["topic"]}
    with pytest.raises(DataError, match="did you mean 'topic'"):
        form.labels(data, "test", "topics")


def test_each_window_has_its_series(write: Write, project: Project) -> None:
    lines = [
        f"{name},2001-01-{day:02},{day + 100 * number}" for number, name in enumerate("xy") for day in range(1, 31)
    ]
    write("s.csv", "\n".join(["shop,time,value", *lines]) + "\n")
    section = SeriesSection(path="data/s.csv", series="shop", context=6, horizon=2, test_steps=8, validation_steps=4)
    (project.root / "assets").mkdir()
    form, data = SeriesFormat.open(section, project, project.root / "assets")
    found = values(form, data, "test")
    batch = data.source("test", len(found), seed=None).read(0, slice(None))
    assert found.tolist() == np.where(batch["location"] > 100, "y", "x").tolist()
    assert values(form, data, "test", "shop").tolist() == found.tolist()
    with pytest.raises(DataError, match="no column 'price'"):
        form.labels(data, "test", "price")


def test_rows_of_a_table_have_columns_that_the_model_does_not_read(write: Write, project: Project) -> None:
    lines = [f"{n},{n % 2},site {n % 3},{n if n % 5 else ''}" for n in range(200)]
    write("t.csv", "\n".join(["x,label,site,note", *lines]) + "\n")
    section = TableSection(path="data/t.csv", target="label", ignore=("site", "note"), test_fraction=0.3)
    (project.root / "assets").mkdir()
    form, data = TableFormat.open(section, project, project.root / "assets")
    numbers = [int(place.rpartition(":")[2]) - 2 for place in form.places(data, "test", range(10))]
    assert form.labels(data, "test", None) is None
    assert values(form, data, "test", "site")[:10].tolist() == [f"site {n % 3}" for n in numbers]
    assert values(form, data, "test", "note")[:10].tolist() == [str(n) if n % 5 else "" for n in numbers]
    grouped, again = TableFormat.open(
        section.model_copy(update={"group_column": "site"}), project, project.root / "assets"
    )
    assert set(values(grouped, again, "train")) <= {"site 0", "site 1", "site 2"}
    assert form.split_digest(data, "test") == form.split_digest(data, "test") != form.split_digest(data, "train")


def test_pictures_have_the_columns_of_their_list(project: Project) -> None:
    random = np.random.default_rng(0)
    lines = ["file,label,camera"]
    for number in range(40):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(project.root / f"data/{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]},camera {number % 3}")
    (project.root / "data/list.csv").write_text("\n".join(lines) + "\n")
    section = ImagesSection(path="data/list.csv", image_size=(8, 8), workers=0)
    form, data = ImageFormat.open(section, project, project.root)
    assert isinstance(data, ArrayDataset)
    names = form.places(data, "train", range(10))
    expected = [f"camera {int(name.split()[-1].removesuffix('.png').rpartition('/')[2]) % 3}" for name in names]
    assert values(form, data, "train", "camera")[:10].tolist() == expected
