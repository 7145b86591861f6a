"""`aifx eval --html`: the report as a page, with the worst errors as pictures."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained_project import aifx

from aifx.data.spec import DataSpec
from aifx.objectives.base import Rows
from aifx.objectives.classification import Classification, Multilabel
from aifx.objectives.regression import Regression

SPEC = DataSpec({}, classes=("cat", "dog"))


def rows(values: object, weights: object = None) -> Rows:
    array = np.asarray(values)
    return Rows(array, np.ones(len(array)) if weights is None else np.asarray(weights))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_page_shows_the_worst_errors_as_pictures(classified: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = aifx(classified, "eval", "--step", "6", "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert f"written to {page}" in done.stderr
    text = page.read_text()
    assert "img-src data:" in text
    assert not re.search(r'src="(?!data:image/png;base64,)', text)
    for words in (
        "run main, step 6, test split",
        "per_class.bag.average_precision &gt; 0",
        "balanced_accuracy",
        "threshold",
    ):
        assert words in text
    arrays = np.load(classified / "data/images.npz")
    found = re.findall(r'src="data:image/png;base64,([^"]+)" alt="example (\d+)".*?<dt>is</dt><dd>(\w+)', text, re.S)
    assert found
    for picture, number, label in found:
        picture_read = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
        np.testing.assert_array_equal(picture_read, arrays["test_images"][int(number) - 1])
        assert ("other", "bag", "trousers")[arrays["test_labels"][int(number) - 1]] == label


@pytest.mark.slow
def test_the_page_of_other_data_names_its_files(classified: Path, tmp_path: Path) -> None:
    arrays = np.load(classified / "data/images.npz")
    for number, (image, label) in enumerate(zip(arrays["test_images"], arrays["test_labels"], strict=True)):
        folder = tmp_path / f"june/{('other', 'bag', 'trousers')[label]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    page, data = tmp_path / "june.html", ["--data", str(tmp_path / "june"), "--data", "data/images.npz"]
    done = aifx(classified, "eval", "--step", "6", "--html", str(page), *data)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.count("<h2>Metrics</h2>") == 2
    names = re.findall(r'<p class="name">([^<]+)</p>\s*<dl><dt>is</dt><dd>(\w+)', text)
    files = [(name, label) for name, label in names if not name.startswith("example")]
    assert 0 < len(files) < len(names)  # an archive has no files
    for name, label in files:
        assert Path(name).is_file()
        assert Path(name).parent == tmp_path / "june" / label


@pytest.mark.slow
def test_pages_that_cannot_be_written(classified: Path, tmp_path: Path) -> None:
    nowhere = aifx(classified, "eval", "--html", str(tmp_path / "no/a.html"))
    assert nowhere.returncode == 2
    assert "cannot be written" in nowhere.stderr


def test_the_worst_errors_of_a_classifier_come_first() -> None:
    logits = [[0.0, 3.0], [0.0, 9.0], [5.0, 0.0], [0.0, 1.0], [0.0, 20.0]]
    totals = {"logits": rows(logits, [1, 1, 1, 1, 0]), "labels": rows([0, 0, 0, 1, 0])}
    errors = Classification().worst_errors(totals, SPEC, 9)
    assert [error.row for error in errors] == [1, 0]  # the others are right, or fill the batch
    assert (errors[0].facts["is"], errors[0].facts["predicted"]) == ("cat, p = 0.0001", "dog, p = 0.9999")
    assert [error.row for error in Classification().worst_errors(totals, SPEC, 1)] == [1]


def test_the_worst_errors_of_several_labels_and_of_numbers() -> None:
    totals = {"logits": rows([[3.0, 9.0], [3.0, 3.0], [3.0, -3.0]]), "labels": rows([[1, 0], [0, 1], [1, 0]])}
    errors = Multilabel().worst_errors(totals, SPEC, 9)
    assert [error.row for error in errors] == [0, 1]
    assert errors[0].facts == {"is": ["cat"], "predicted": ["cat", "dog"]}
    numbers = {"predicted": rows([[1.0], [2.0], [3.0]]), "errors": rows([[0.5], [-2.0], [0.0]])}
    errors = Regression().worst_errors(numbers, DataSpec({}), 9)
    assert [(error.row, error.facts) for error in errors] == [
        (1, {"is": [4.0], "predicted": [2.0]}),
        (0, {"is": [0.5], "predicted": [1.0]}),
    ]


@pytest.mark.representative("an evaluation")
def test_a_report_without_classes_has_a_page(project: Path, tmp_path: Path) -> None:
    page = tmp_path / "text.html"
    done = aifx(project, "eval", "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "bits_per_byte" in page.read_text()
    assert "<img" not in page.read_text()
