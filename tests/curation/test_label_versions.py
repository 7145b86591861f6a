"""The explanation of a label, and labels that are probably wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pyarrow as pa
import pytest
from label_rows import add_labels, entry, png, rows_version, texts_version

from aifx.curation.labels.rows import view_of
from aifx.curation.labels.store import LabelState
from aifx.curation.labels.suspects import find_suspects
from aifx.data.versions.catalog import Catalog, open_catalog

FASHION = Path(__file__).parents[2] / "templates/vision-inspection/data/fashion_mnist_small.npz"


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


def run(catalog: Catalog, *args: str | Path) -> tuple[int, Any]:
    """The code and the document of `aifx data`."""
    folder = catalog.local
    assert folder is not None
    done = inprocess.run(["data", *map(str, args), "--json", "--root", str(folder)], folder.parent, {})
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_why_a_row_has_its_label(catalog: Catalog) -> None:
    texts_version(catalog)
    add_labels(catalog, entry(0, "good"), entry(0, "good", "bob", note="clearly"), entry(0, "bad", "eve"))
    run(catalog, "label", "apply", "reviews")
    _, found = run(catalog, "why", "f-0", "--dataset", "reviews")
    added, labelled = found["histories"][0]["steps"]
    assert (added["labels"], labelled["step"], labelled["outcome"]) == ([], "label", "changed")
    assert [(label["labeller"], label["label"], label["note"]) for label in labelled["labels"]] == [
        ("ann", "good", ""), ("bob", "good", "clearly"), ("eve", "bad", ""),
    ]  # fmt: skip
    _, found = run(catalog, "why", "f-2", "--dataset", "reviews")
    assert [step["outcome"] for step in found["histories"][0]["steps"]] == ["added", "kept"]


@pytest.mark.slow
def test_planted_wrong_labels_are_found(catalog: Catalog, tmp_path: Path) -> None:
    """400 real images, of which 30 have the label of another class."""
    pytest.importorskip("cleanlab")
    data = np.load(FASHION)
    chosen = [at for at in range(4000) if data["train_labels"][at] in (1, 3, 8, 9)][:400]
    names = {1: "Trouser", 3: "Dress", 8: "Bag", 9: "Ankle boot"}
    labels = [names[int(data["train_labels"][at])] for at in chosen]
    planted = set(np.random.default_rng(0).permutation(400)[:30].tolist())
    others = sorted(names.values())
    given = [others[(others.index(one) + 1) % 4] if at in planted else one for at, one in enumerate(labels)]
    images = [png(data["train_images"][at]) for at in chosen]
    version = rows_version(catalog, "pictures", {"image": images, "label": given}, "images")
    code, found = run(catalog, "label", "suspects", "pictures", "--output", tmp_path / "suspects.jsonl")
    rows = {int(one["row"][2:]) for one in found["suspects"]}
    assert (code, found["rows"], found["unjudged"]) == (0, 400, 0)
    assert len(rows & planted) >= 27
    assert len(rows - planted) <= 10
    right = {int(one["row"][2:]): one["likelier"] for one in found["suspects"]}
    assert sum(right.get(at) == labels[at] for at in planted) >= 24
    lines = [json.loads(line) for line in (tmp_path / "suspects.jsonl").read_text().splitlines()]
    assert [line["_row"] for line in lines] == [one["row"] for one in found["suspects"]]
    # A model of one's own: sure of the true class of each row.
    path = tmp_path / "predictions.jsonl"
    with path.open("w") as file:
        for at, label in enumerate(labels):
            own = {name: 0.91 if name == label else 0.03 for name in others}
            file.write(json.dumps({"_row": f"f-{at}", "probabilities": own}) + "\n")
    found = find_suspects(version, view_of(version, "label"), "label", LabelState(), path)
    assert {int(one.row[2:]) for one in found.suspects} == planted


@pytest.mark.slow
def test_suspects_among_texts(catalog: Catalog) -> None:
    pytest.importorskip("cleanlab")
    chosen = np.random.default_rng(0)
    words = {"sea": ["whale", "ship", "harpoon", "deck", "sail"], "land": ["field", "barn", "plough", "cow", "hay"]}
    texts = [" ".join(chosen.choice(words[name], 8)) for name in ["sea", "land"] * 30]
    labels = ["land" if at == 10 else ["sea", "land"][at % 2] for at in range(60)]
    rows_version(catalog, "reviews", {"text": texts, "label": pa.array(labels)})
    _, found = run(catalog, "label", "suspects", "reviews")
    assert [(one["row"], one["label"], one["likelier"]) for one in found["suspects"]] == [("f-10", "land", "sea")]
    add_labels(catalog, entry(10, "sea"))  # of people, which count first
    assert run(catalog, "label", "suspects", "reviews")[1]["suspects"] == []
