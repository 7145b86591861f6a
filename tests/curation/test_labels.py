"""The file of labels, agreement, and labels in the formats of other programs."""

from __future__ import annotations

import base64
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
from label_rows import TEXTS, add_labels, entries_of, entry, labels_of, png, rows_version, texts_version

from aifx.core.errors import DataError, UsageError
from aifx.core.files import FolderBusy
from aifx.core.json_values import plain
from aifx.core.parsing import parse_json
from aifx.curation.labels.agreement import agreement_of, krippendorff_alpha
from aifx.curation.labels.store import Entry, label_file, open_log, read_entries, read_state
from aifx.data.versions.catalog import Catalog, open_catalog


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


def run(catalog: Catalog, *args: str | Path) -> Any:
    """The code and the document of `aifx data label`."""
    folder = catalog.local
    assert folder is not None
    done = inprocess.run(["data", "label", *map(str, args), "--json", "--root", str(folder)], folder.parent, {})
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def counting(catalog: Catalog) -> list[Entry]:
    """Labels and skips that count, by row."""
    return [one for of_row in read_state(catalog, "reviews", "label").by_row.values() for one in of_row.values()]


def test_the_last_line_of_a_row_and_labeller_counts(catalog: Catalog) -> None:
    texts_version(catalog)
    add_labels(catalog, entry(0, "good"), entry(0, "bad", id="later"), entry(0, "good", "bob"), entry(1, "bad"))
    add_labels(catalog, entry(1, None, action="undo"), entry(2, None), entry(0, "good"))  # the last has a known id
    assert labels_of(catalog) == {"f-0": {"ann": "bad", "bob": "good"}}
    assert len(entries_of(catalog)) == 6
    assert [one.action for one in counting(catalog)] == [
        "label", "label", "skip",
    ]  # fmt: skip


def test_a_torn_line_is_cut_and_a_damaged_one_reported(catalog: Catalog) -> None:
    texts_version(catalog)
    add_labels(catalog, entry(0, "good"), entry(1, "bad"))
    path = label_file(catalog, "reviews", "label")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 3])
    assert len(read_entries(path)) == 2
    add_labels(catalog, entry(2, "good"))
    assert path.read_bytes().startswith(whole)
    assert labels_of(catalog) == {"f-0": {"ann": "good"}, "f-1": {"ann": "bad"}, "f-2": {"ann": "good"}}
    path.write_bytes(whole.replace(b'"good"', b'"go', 1))
    with pytest.raises(DataError, match=r"label\.jsonl:1 "):
        read_entries(path)
    path.write_bytes(whole.replace(b'"action": "label"', b'"action": "undo"', 1))
    with pytest.raises(DataError, match=r"label\.jsonl:1"):
        read_entries(path)


def test_a_last_line_without_end_counts_if_it_is_whole(catalog: Catalog) -> None:
    texts_version(catalog)
    add_labels(catalog, entry(0, "good"), entry(1, "bad"))
    path = label_file(catalog, "reviews", "label")
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # as an editor leaves it
    both = {"f-0": {"ann": "good"}, "f-1": {"ann": "bad"}}
    assert labels_of(catalog) == both
    add_labels(catalog, entry(2, "good"))
    assert labels_of(catalog) == both | {"f-2": {"ann": "good"}}


@pytest.mark.parametrize(
    "wrong",
    [{"label": 5}, {"labeller": None}, {"labeller": ["a"]}, {"id": []}, {"time": 7}, {"note": 9}, {"action": "lapel"},
     {"action": "skip"}, {"action": "skip", "label": ""}],
)  # fmt: skip
def test_a_line_with_values_of_other_types_is_reported(catalog: Catalog, wrong: dict[str, Any]) -> None:
    texts_version(catalog)
    add_labels(catalog, entry(0, "good"))
    path = label_file(catalog, "reviews", "label")
    path.write_bytes(path.read_bytes() + json.dumps(plain(entry(1, "bad")) | wrong).encode() + b"\n")
    code, found = run(catalog, "agreement", "reviews")
    assert (code, f"{path}:2 " in found["error"]["what"]) == (2, True)


def test_names_of_all_scripts_are_taken_and_control_characters_are_not(catalog: Catalog) -> None:
    texts_version(catalog)
    add_labels(catalog, entry(0, "خیلی\u200cخوب", "Zoé\u00a0B."), entry(1, "bon\u202f!"))
    assert labels_of(catalog) == {"f-0": {"Zoé\u00a0B.": "خیلی\u200cخوب"}, "f-1": {"ann": "bon\u202f!"}}
    for more in ({"label": "a\x1b[31m"}, {"labeller": "a\u202eb"}, {"time": "\x1b]0;x\x07"}, {"labeller": "\ud800"}):
        with pytest.raises(ValueError, match=r"no control characters|unicode string"):
            replace(entry(2, "x"), **more)


def test_one_process_writes_at_a_time(catalog: Catalog) -> None:
    texts_version(catalog)
    with (
        open_log(catalog, "reviews", "label"),
        pytest.raises(FolderBusy, match="reviews is in use"),
    ):
        add_labels(catalog, entry(0, "good"))


@pytest.mark.parametrize("column", ["../x", "_row", "a/b", ""])
def test_a_column_that_cannot_be(catalog: Catalog, column: str) -> None:
    with pytest.raises(UsageError, match="cannot name a column"):
        label_file(catalog, "reviews", column)


# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): sections A, B and C. A dot is a missing label.
BINARY = ("0100000010", "1110010000")
NOMINAL = ("aabbdcccedda", "babbbccceddd")
MISSING = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


@pytest.mark.parametrize(
    ("observers", "alpha"),
    [(BINARY, 0.095), (NOMINAL, 0.692), (MISSING, 0.743)],
)
def test_alpha_against_the_published_tables(observers: tuple[str, ...], alpha: float) -> None:
    assert len({len(one) for one in observers}) == 1
    units = [[value for value in unit if value != "."] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(alpha, abs=0.0005)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1
    # Two rows, each with both labels: all 2 pairs differ, and by chance 2 / 3 would.
    assert krippendorff_alpha([["a", "b"], ["b", "a"]]) == pytest.approx(-0.5)
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None
    assert krippendorff_alpha([["a"], ["b"]]) is None


def test_agreement_names_who_differs() -> None:
    labels = {"r0": {"ann": "x", "bob": "x"}, "r1": {"ann": "x", "bob": "y", "eve": "y"}, "r2": {"eve": "x"}}
    found = agreement_of("reviews@0", "label", labels, 0.9)
    assert (found.rows, found.shared, found.different, found.accepted) == (3, 2, 1, False)
    assert [(pair.labellers, pair.rows, pair.same) for pair in found.pairs] == [
        (("ann", "bob"), 2, 0.5), (("ann", "eve"), 1, 0.0), (("bob", "eve"), 1, 1.0),
    ]  # fmt: skip
    assert list(found.disagreements[0].labels.items()) == [("y", ("bob", "eve")), ("x", ("ann",))]


def test_a_bound_of_agreement(catalog: Catalog) -> None:
    texts_version(catalog)
    code, found = run(catalog, "agreement", "reviews", "--min-agreement", "0.1")
    assert (code, found["alpha"], found["accepted"]) == (1, None, False)
    for row, (ann, bob) in enumerate(["gg", "gb", "bb", "gg", "bb"]):
        add_labels(catalog, entry(row, ann), entry(row, bob, "bob"))
    code, found = run(catalog, "agreement", "reviews", "--min-agreement", "0.6")
    assert (code, round(found["alpha"], 3)) == (0, 0.64)
    assert run(catalog, "agreement", "reviews", "--min-agreement", "0.7")[0] == 1


# In the shape of label-studio/examples/sentiment_analysis and image_multilabel, old and new.
def choice(*values: str) -> dict[str, Any]:
    return {"from_name": "sentiment", "to_name": "t", "type": "choices", "value": {"choices": list(values)}}


STUDIO: list[dict[str, Any]] = [
    {
        "id": 7,
        "data": {"reviewText": TEXTS[1], "overall": 1, "asin": "B0001"},
        "annotations": [
            {
                "id": 1001, "completed_by": 3, "was_cancelled": False, "created_at": "2021-03-09T22:16:08.728353Z",
                "lead_time": 4.2,
                "result": [
                    {"id": "a1", "from_name": "box", "to_name": "t", "type": "rectanglelabels", "value": {"x": 1}},
                    {"id": "a2"} | choice("Negative"),
                ],
            },
            {"id": 1002, "completed_by": {"id": 4, "email": "bob@example.com"}, "was_cancelled": True, "result": []},
            {"id": 1003, "completed_by": 5, "result": [choice("Negative", "Neutral")]},
        ],
        "predictions": [
            {"model_version": "m1", "score": 0.9, "result": [choice("Neutral")]},
        ],
    },
    {"id": 8, "data": {"reviewText": TEXTS[0]}, "completions": [{"result": [choice("Positive")]}]},
    {"id": 9, "data": {"reviewText": "of another data set"}, "annotations": [{"result": [choice("Positive")]}]},
]  # fmt: skip


def test_tasks_of_label_studio_come_in(catalog: Catalog, tmp_path: Path) -> None:
    texts_version(catalog)
    path = tmp_path / "project.json"
    path.write_text(json.dumps(STUDIO))
    code, found = run(catalog, "import", "reviews", path, "--labeller", "old")
    assert (code, found["added"], found["known"]) == (0, 3, 0)
    choices, content = sorted(found["unused"])
    assert "2 choices" in choices
    assert "content" in content
    assert list(found["unused"].values()) == [1, 1]
    assert f"{path}: task 3: {content}" in found["examples"]
    assert labels_of(catalog) == {"f-1": {"annotator-3": "Negative"}, "f-0": {"old": "Positive"}}
    entries = entries_of(catalog)
    assert [(one.labeller, one.action) for one in entries[:2]] == [
        ("annotator-3", "label"),
        ("bob@example.com", "skip"),
    ]
    assert entries[0].time == "2021-03-09T22:16:08.728353Z"
    code, found = run(catalog, "import", "reviews", path, "--labeller", "old", "--predictions")
    assert (found["added"], found["known"]) == (1, 3)
    assert labels_of(catalog)["f-1"]["model:m1"] == "Neutral"


def test_an_export_for_label_studio_comes_back_whole(catalog: Catalog, tmp_path: Path) -> None:
    version = texts_version(catalog)
    add_labels(
        catalog,
        entry(1, "bad"),
        entry(1, "good", "bob@example.com", note="it's <i>fine</i>"),
        entry(4, None),
        entry("g-1", "bad"),
    )
    path = tmp_path / "out.json"
    code, found = run(catalog, "export", "reviews", path)
    assert (code, found["rows"], found["labels"], found["absent"]) == (0, 2, 2, 1)
    tasks = json.loads(path.read_text())
    assert [task["data"]["text"] for task in tasks] == [TEXTS[1], TEXTS[4]]
    first, second = tasks[0]["annotations"]
    assert first["result"][0] | {"id": ""} == {
        "id": "", "from_name": "label", "to_name": "text", "type": "choices",
        "value": {"choices": ["bad"]}, "meta": {"labeller": "ann"},
    }  # fmt: skip
    assert "completed_by" not in first  # which Label Studio would refuse
    assert second["completed_by"] == {"email": "bob@example.com"}
    assert tasks[1]["annotations"][0]["was_cancelled"] is True
    before = {(one.row, one.labeller, one.label, one.note, one.time) for one in entries_of(catalog)}
    label_file(catalog, "reviews", "label").unlink()
    assert run(catalog, "import", version.reference, path)[1]["added"] == 3
    after = {(one.row, one.labeller, one.label, one.note, one.time) for one in entries_of(catalog)}
    assert after == {one for one in before if one[0] != "g-1"}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_lines_and_cells_come_back_whole(catalog: Catalog, tmp_path: Path, suffix: str) -> None:
    texts_version(catalog)
    add_labels(catalog, entry(1, "bad"), entry(1, 'a,"b"', "bob", note="x\ny"), entry(4, None))
    path, before = tmp_path / f"out.{suffix}", labels_of(catalog)
    assert run(catalog, "export", "reviews", path)[1]["labels"] == 2
    if suffix == "csv":
        rows = list(csv.reader(path.open(newline="")))
        assert rows[0] == ["row", "label", "labeller", "time", "note"]
        assert rows[2] == ["f-1", 'a,"b"', "bob", "2026-11-28T06:30:00.000Z", "x\ny"]
    label_file(catalog, "reviews", "label").unlink()
    assert run(catalog, "import", "reviews", path)[1]["added"] == 3
    assert labels_of(catalog) == before


def test_no_cell_is_a_formula(catalog: Catalog, tmp_path: Path) -> None:
    texts_version(catalog)
    notes = ["=HYPERLINK(0)", "'=x", "-2", "-x", "'s", "\ttab"]
    add_labels(catalog, *(entry(0, "+1", f"@{number}", note=note) for number, note in enumerate(notes)))
    before = counting(catalog)
    assert run(catalog, "export", "reviews", tmp_path / "out.csv")[0] == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
    assert [row["note"] for row in rows] == ["'=HYPERLINK(0)", "''=x", "-2", "'-x", "'s", "'\ttab"]
    assert {row["label"] for row in rows} == {"+1"}
    assert rows[0]["labeller"] == "'@0"
    label_file(catalog, "reviews", "label").unlink()
    assert run(catalog, "import", "reviews", tmp_path / "out.csv")[1]["added"] == len(notes)
    after = counting(catalog)
    assert [(one.labeller, one.note) for one in after] == [(one.labeller, one.note) for one in before]


def test_numbers_that_json_lacks_are_texts_for_label_studio(catalog: Catalog, tmp_path: Path) -> None:
    rows_version(catalog, "numbers", {"x": [float("nan"), float("inf"), 1.5]}, "table")
    add_labels(catalog, *(entry(row, "good", kind="table") for row in range(3)), name="numbers")
    assert run(catalog, "export", "numbers", tmp_path / "out.json")[0] == 0
    tasks = parse_json((tmp_path / "out.json").read_bytes())
    assert [task["data"]["x"] for task in tasks] == ["nan", "inf", 1.5]


def test_pairs_of_label_studio(catalog: Catalog, tmp_path: Path) -> None:
    rows_version(catalog, "answers", {"one": ["a0", "a1", "a2"], "two": ["b0", "b1", "b2"]}, "table")

    def task(data: dict[str, str], selected: str) -> dict[str, Any]:
        result = {"from_name": "pw", "to_name": "txt-1,txt-2", "type": "pairwise", "value": {"selected": selected}}
        return {"data": data, "annotations": [{"completed_by": 1, "result": [result]}]}

    path = tmp_path / "pairs.json"
    given = [task({"t1": "a0", "t2": "b0"}, "left"), task({"t1": "b1", "t2": "a1"}, "left"), task({"t": "a2"}, "left")]
    path.write_text(json.dumps(given))
    code, found = run(catalog, "import", "answers", path, "--pair", "one,two")
    assert (code, found["added"]) == (0, 2)
    labels = {"f-0": {"annotator-1": "one"}, "f-1": {"annotator-1": "two"}}
    assert labels_of(catalog, "answers") == labels
    code, _ = run(catalog, "export", "answers", path, "--pair", "one,two")
    results = [one["annotations"][0]["result"][0] for one in json.loads(path.read_text())]
    assert [(one["to_name"], one["value"]) for one in results] == [
        ("one,two", {"selected": "left"}), ("one,two", {"selected": "right"}),
    ]  # fmt: skip
    label_file(catalog, "answers", "label").unlink()
    run(catalog, "import", "answers", path, "--pair", "one,two")
    assert labels_of(catalog, "answers") == labels
    code, error = run(catalog, "import", "answers", path, "--pair", "one,three")
    assert (code, "--pair one,three" in error["error"]["what"]) == (2, True)


def test_images_are_found_by_their_bytes_or_file_names(catalog: Catalog, tmp_path: Path) -> None:
    images = [png(np.full((4, 4), shade, np.uint8)) for shade in (0, 100, 200)]
    rows_version(catalog, "pictures", {"image": images, "label": [None, "x", None]}, "images")

    def task(image: str) -> dict[str, Any]:
        result = {"from_name": "c", "to_name": "img", "type": "choices", "value": {"choices": ["shirt"]}}
        return {"data": {"image": image}, "annotations": [{"result": [result]}]}

    path = tmp_path / "images.json"
    given = [
        "data:image/png;base64," + base64.b64encode(images[2]).decode(),
        "/data/upload/1/42d46c4c-1.png",
        "/x/9.png",
        "data:,",
    ]
    path.write_text(json.dumps([task(one) for one in given]))
    assert run(catalog, "import", "pictures", path)[1]["added"] == 2
    assert set(labels_of(catalog, "pictures")) == {"f-1", "f-2"}
    run(catalog, "export", "pictures", path)
    assert {task["data"]["image"] for task in json.loads(path.read_text())} == {
        "data:image/png;base64," + base64.b64encode(images[at]).decode() for at in (1, 2)
    }


def test_a_file_that_is_missing(catalog: Catalog, tmp_path: Path) -> None:
    texts_version(catalog)
    code, found = run(catalog, "import", "reviews", tmp_path / "a.json")
    assert (code, found["error"]["what"]) == (2, f"{tmp_path / 'a.json'} cannot be read")


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.json", "[1, 2]", "task 1 is no task of Label Studio"),
        ("a.json", '[{"text": "min"}]', "task 1 is no task of Label Studio"),
        ("a.json", "{", "is not JSON"),
        ("a.jsonl", '{"label": "x"}\n', "a.jsonl:1 names no row"),
        ("a.jsonl", '{"row": "f-0", "label": "x"}\n[\n', "a.jsonl:2: not JSON"),
        ("a.csv", "row,label\n,x\n", "a.csv:2 names no row"),
        ("a.txt", "", "has no known format"),
    ],
)
def test_files_that_cannot_be_read(catalog: Catalog, tmp_path: Path, name: str, text: str, what: str) -> None:
    texts_version(catalog)
    (tmp_path / name).write_text(text)
    code, found = run(catalog, "import", "reviews", tmp_path / name)
    assert code == 2
    assert what in found["error"]["what"]
    assert labels_of(catalog) == {}


def test_a_line_with_a_wrong_value_is_not_used(catalog: Catalog, tmp_path: Path) -> None:
    texts_version(catalog)
    lines = [
        {"row": "f-0", "label": 3},
        {"row": "f-9", "label": "x"},
        {"_row": "f-1", "label": "x" * 300},
        {"_row": "f-2", "label": "ok"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, found = run(catalog, "import", "reviews", tmp_path / "a.jsonl", "--labeller", "sim")
    assert (code, found["added"], sum(found["unused"].values())) == (0, 1, 3)
    assert labels_of(catalog) == {"f-2": {"sim": "ok"}}
