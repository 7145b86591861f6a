"""Tables: kinds of columns, their values as numbers, splits, mistakes in files, and simple predictors."""

from __future__ import annotations

import csv
import datetime
import json
import math
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from scipy.special import softmax

from aifx.core.errors import AifxError, DataError
from aifx.core.project import Project
from aifx.data.arrays import ArrayDataset
from aifx.data.columns import describe_columns, encoder, infer_columns, infer_kind
from aifx.data.file_index import find_implicit
from aifx.data.sections import TableSection
from aifx.data.spec import DataSpec, keep_spec, need_spec
from aifx.data.table import L2, TableFormat, table_baselines

ROWS = [
    {
        "size": str(n % 50),
        "site": "abc"[n % 3],
        "open": "yes" if n % 5 else "no",
        "day": f"2024-{n % 12 + 1:02}-10",
        "price": f"{n % 50 * 2.5}",
        "label": "good" if n % 50 > 20 else "bad",
    }
    for n in range(300)
]


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def open_table(folder: Path, rows: list[dict[str, str]] = ROWS, **settings: Any) -> tuple[TableFormat, ArrayDataset]:
    write(folder / "t.csv", rows)
    section = TableSection(**({"path": "t.csv", "target": "label"} | settings))
    (folder / "assets").mkdir(exist_ok=True)
    return TableFormat.open(section, Project(folder), folder / "assets")


def test_a_table_in_a_store_is_the_table_of_the_file(tmp_path: Path) -> None:
    project, store = Project(tmp_path), fsspec.filesystem("memory")
    _, local = open_table(tmp_path)
    store.put(str(tmp_path / "t.csv"), "/tables/t.csv")
    try:
        url = "memory://tables/t.csv"
        form, remote = open_table(tmp_path, path=url)
        assert remote.digest == local.digest
        assert form.places(remote, "test", [0])[0].startswith(f"{url}:")
        section = TableSection(path=url, target="label")
        assert not list(section.check_files(project))
        assert section.read_beginnings(project) == 1
        assert remote.file_versions["data.path"].record() == find_implicit("data.path", section, project).record()
        ((key, error),) = TableSection(path="memory://tables/none.csv", target="label").check_files(project)
        assert (key, "memory://tables/none.csv" in error.what) == ("data.path", True)
    finally:
        store.rm("/tables", recursive=True)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", " 2.5", "-3e4", ""], "numeric"),
        (["1", "1_0"], "categorical"),
        (["1", "inf"], "categorical"),
        (["yes", "NO", "n/a"], "boolean"),
        ([True, None, False], "boolean"),
        (["2024-05-31", "2024/06/01", "2024-05-31T12:00+02:00"], "date"),
        ([datetime.date(2024, 5, 31), None], "date"),
        (["2024-05-31", "soon"], "categorical"),
        ([1, 2.0, float("nan")], "numeric"),
        (["a", "1"], "categorical"),
    ],
)
def test_the_kind_of_a_column_is_that_of_all_its_values(values: list[Any], kind: str) -> None:
    assert infer_kind(values) == kind


def test_a_number_is_standardized_and_has_bins_at_its_quantiles() -> None:
    values = np.random.default_rng(0).lognormal(size=1000)
    (column,) = infer_columns("x", "numeric", [*map(str, values), ""], bins=8)
    encode = encoder(column)
    scaled = (values - values.mean()) / values.std()
    np.testing.assert_allclose([encode(str(value)) for value in values], scaled)
    np.testing.assert_allclose(column.edges, np.quantile(scaled, np.linspace(0, 1, 9)), rtol=1e-6)
    assert math.isnan(encode("NA"))
    (steps,) = infer_columns("x", "numeric", [0] * 8 + [1], bins=8)
    assert len(steps.edges) == 2, "equal quantiles are one edge"
    assert infer_columns("x", "numeric", ["7", "7"], bins=8) == []
    assert len(infer_columns("x", "numeric", ["7", ""], bins=8)) == 1, "a value may be there or not"


def test_a_number_that_training_did_not_vary_has_no_tiny_scale() -> None:
    values = ["0.1"] * 100  # their computed standard deviation is not 0
    assert np.std(np.array(values, float)) > 0
    (column,) = infer_columns("x", "numeric", [*values, ""], bins=8)
    assert column.scale == 1.0
    assert encoder(column)("0.2") == pytest.approx(0.1)


def test_the_range_of_a_number_is_shown_as_people_write_it() -> None:
    columns = infer_columns("calls", "numeric", [str(n % 10) for n in range(100)], bins=8)
    assert list(describe_columns(columns)) == [("calls", "numeric", "0 to 9, 8 bins")]


def test_a_number_far_from_training_is_finite_in_float32() -> None:
    (column,) = infer_columns("x", "numeric", [str(n / 100) for n in range(100)], bins=8)
    assert [encoder(column)(text) for text in ("1e35", "-1e35")] == [1e6, -1e6]
    with pytest.raises(ValueError, match="larger than 1e\\+36"):
        encoder(column)("1e37")


@pytest.mark.parametrize("unit", [1e-300, 5e-324])
def test_numbers_whose_squares_are_zero_have_a_scale(unit: float) -> None:
    values = [number * unit for number in range(100)]
    (column,) = infer_columns("x", "numeric", [*map(str, values)], bins=8)
    found = [encoder(column)(value) for value in values]
    assert found == sorted(set(found))
    assert np.ptp(found) == pytest.approx(1)
    assert next(describe_columns([column]))[2] == f"0 to {99 * unit:.5g}, 8 bins"


def test_the_project_probe_reads_the_columns_that_the_table_needs(tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    assert TableSection(path="t.csv", target="label").read_beginnings(Project(tmp_path)) == 1
    with pytest.raises(ValueError, match="no field 'lable'"):
        TableSection(path="t.csv", target="lable").read_beginnings(Project(tmp_path))


def test_categories_are_numbered_after_unknown_and_missing() -> None:
    (column,) = infer_columns("x", "categorical", ["b", "a", "a", "b", "once", None], bins=8)
    encode = encoder(column)
    assert column.categories == ("a", "b")
    assert [encode(value) for value in ("new", "once", "", "a", "b")] == [0, 0, 1, 2, 3]
    (boolean,) = infer_columns("x", "boolean", ["Yes", "no"], bins=8)
    assert [encoder(boolean)(value) for value in ("maybe", None, "F", False, "t", True)] == [0, 1, 2, 2, 3, 3]


def test_a_date_is_its_calendar() -> None:
    columns = infer_columns("d", "date", ["2024-05-31T06:30", "2023-01-02T00:00"], bins=8)
    plain = [encoder(c)("1970-02-03T12:30:00+01:00") * c.scale + c.mean for c in columns]
    assert [c.part for c in columns] == ["day", "month", "day_of_month", "day_of_week", "hour"]
    np.testing.assert_allclose(plain, [33 + 11.5 / 24, 2, 3, 2, 11.5])
    assert len(infer_columns("d", "date", ["2024-05-01", "2024-05-02"], bins=8)) == 3, "month and hour never change"


def test_the_parts_of_a_batch(tmp_path: Path) -> None:
    form, data = open_table(tmp_path, ignore=("price",), bins=4)
    names = [(column.name, column.kind, column.part) for column in form.spec.columns]
    dates = [("day", "date", part) for part in ("day", "month", "day_of_week")]
    assert names == [("size", "numeric", ""), ("site", "categorical", ""), ("open", "boolean", ""), *dates]
    assert form.spec.classes == ("bad", "good")
    batch = data.source("train", 16, seed=0).read(3, slice(0, 16))
    assert {name: (values.dtype.name, values.shape) for name, values in batch.items()} == {
        "inputs": ("float32", (16, 6)),
        "targets": ("int32", (16,)),
        "weights": ("float32", (16,)),
    }
    size = form.spec.columns[0]
    assert ((batch["inputs"][:, 0] * size.scale + size.mean > 20.5) == batch["targets"]).all()
    row = {"size": "", "site": "x", "open": "no", "day": "2024-03-10"}
    encoded = form.encode(row)["inputs"]
    assert (encoded.shape, encoded.dtype) == ((1, 6), np.float32)
    assert np.isnan(encoded[0, 0])
    assert encoded[0, 1:3].tolist() == [0, 2]


def test_statistics_are_those_of_the_training_split_and_kept_with_the_run(tmp_path: Path) -> None:
    form, data = open_table(tmp_path, time_column="day", test_fraction=0.25, validation_fraction=0.1)
    size = form.spec.columns[0]
    train = data.splits["train"]["inputs"][:, 0]
    assert abs(train.mean()) < 1e-6
    assert train.std() == pytest.approx(1, abs=1e-5)
    keep_spec(tmp_path / "assets", form.spec)
    assert need_spec(tmp_path / "assets") == form.spec
    others = [row | {"size": str(int(row["size"]) + 1000), "site": "z"} for row in ROWS]
    again, moved = open_table(tmp_path, others, time_column="day", test_fraction=0.25, validation_fraction=0.1)
    assert again.spec.columns == form.spec.columns
    np.testing.assert_allclose(moved.splits["train"]["inputs"][:, 0], train + 1000 / size.scale, rtol=1e-4)
    assert (moved.splits["train"]["inputs"][:, 1] == 0).all(), "categories that the run does not know"
    assert data.digest != moved.digest
    with pytest.raises(AifxError, match=r"'site'.*\n.*fixed when it starts"):
        open_table(tmp_path, others, time_column="day", ignore=("site",))


def test_regression_targets_are_standardized(tmp_path: Path) -> None:
    form, data = open_table(tmp_path, target="price", ignore=("label", "size"))
    prices = np.array([float(row["price"]) for row in ROWS])
    every = np.concatenate([data.splits[split]["targets"] for split in ("train", "validation", "test")])
    assert data.splits["train"]["targets"].std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(
        np.sort(every * form.spec.target_scale + form.spec.target_mean), np.sort(prices), atol=1e-4
    )
    assert (form.spec.classes, form.spec.target_size) == ((), 1)


@pytest.mark.parametrize(
    ("labels", "columns", "classes"),
    [
        (["10", "9", "9"], {}, ("9", "10")),
        (["10", "9", "9"], {"label": "numeric"}, ()),
        ([str(n) for n in range(11)], {}, ()),
        ([str(n) for n in range(11)], {"label": "categorical"}, tuple(map(str, range(11)))),
        (["0.5", "1"], {}, ()),
        (["true", "false"], {}, ("false", "true")),
    ],
)
def test_what_a_target_is(tmp_path: Path, labels: list[str], columns: dict[str, str], classes: tuple[str, ...]) -> None:
    rows = [row | {"label": labels[n % len(labels)]} for n, row in enumerate(ROWS)]
    assert open_table(tmp_path, rows, columns=columns)[0].spec.classes == classes


def source_rows(data: ArrayDataset) -> dict[str, list[tuple[float, ...]]]:
    return {split: [tuple(row) for row in arrays["inputs"].tolist()] for split, arrays in data.splits.items()}


def test_equal_rows_are_in_one_split(tmp_path: Path) -> None:
    found = source_rows(open_table(tmp_path, ROWS + ROWS, test_fraction=0.3)[1])
    sets = {split: set(rows) for split, rows in found.items()}
    assert not sets["train"] & sets["test"]
    assert not sets["train"] & sets["validation"]
    assert sum(map(len, found.values())) == 600
    assert 120 < len(found["test"]) < 240


def test_a_group_is_in_one_split_and_no_input(tmp_path: Path) -> None:
    rows = [row | {"farm": f"farm {n % 23}", "number": str(n % 23)} for n, row in enumerate(ROWS)]
    form, data = open_table(tmp_path, rows, group_column="farm", test_fraction=0.3)
    assert "farm" not in {column.name for column in form.spec.columns}
    at = [column.name for column in form.spec.columns].index("number")
    sets = {split: {row[at] for row in rows} for split, rows in source_rows(data).items()}
    assert all(sets.values())
    assert not sets["train"] & sets["test"]
    assert not sets["validation"] & sets["test"]
    named, _ = open_table(tmp_path, rows, group_column="farm", columns={"farm": "categorical"})
    assert "farm" in {column.name for column in named.spec.columns}


@pytest.mark.parametrize("kind", ["dates", "numbers"])
def test_the_test_split_is_the_last_by_time(tmp_path: Path, kind: str) -> None:
    start = datetime.date(2024, 1, 1)
    times = [n // 3 if kind == "numbers" else start + datetime.timedelta(n // 3) for n in range(300)]
    order = np.random.default_rng(0).permutation(300)
    rows = [ROWS[n] | {"at": str(times[n]), "place": str(n // 3)} for n in order]
    form, data = open_table(tmp_path, rows, time_column="at", test_fraction=0.2, validation_fraction=0.1)
    names = [(column.name, column.part) for column in form.spec.columns]
    calendar = [("at", "month"), ("at", "day_of_month"), ("at", "day_of_week")] if kind == "dates" else []
    assert [name for name in names if name[0] == "at"] == calendar, "what only grows is left out"
    at = names.index(("place", ""))
    train, validation, test = ({row[at] for row in source_rows(data)[s]} for s in ("train", "validation", "test"))
    assert max(train) < min(validation) <= max(validation) < min(test)
    assert len(test) == 20


def test_csv_and_parquet_and_lines_of_json_are_one_table(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    form, _ = open_table(tmp_path)
    typed = [
        row | {"size": int(row["size"]), "open": row["open"] == "yes", "day": datetime.date.fromisoformat(row["day"])}
        for row in ROWS
    ]
    parquet.write_table(arrow.Table.from_pylist(typed), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row | {"day": str(row["day"])}) + "\n" for row in typed))
    for suffix in ("parquet", "jsonl"):
        other = form.open_file(tmp_path / f"t.{suffix}").splits["test"]
        same = form.open_file(tmp_path / "t.csv").splits["test"]
        np.testing.assert_array_equal(other["inputs"], same["inputs"])
        np.testing.assert_array_equal(other["targets"], same["targets"])
        section = TableSection(path=f"t.{suffix}", target="label", time_column="size")
        csv_section = TableSection(path="t.csv", target="label", time_column="size")
        spec = TableFormat.open(section, Project(tmp_path), tmp_path)[0].spec
        assert spec == TableFormat.open(csv_section, Project(tmp_path), tmp_path)[0].spec


def test_the_summary_says_what_is_read_and_what_is_not(tmp_path: Path) -> None:
    rows = [
        row | {"id": f"x{n}", "unit": "cm", "price": "", "mass": "?" if n == 7 else f"{n / 7:.3f}"}
        for n, row in enumerate(ROWS)
    ]
    write(tmp_path / "t.csv", rows)
    section = TableSection(path="t.csv", target="label", ignore=("day",), columns={"size": "categorical"})
    head, *lines = TableFormat.summary(section, Project(tmp_path))
    assert "t.csv" in head
    assert "training rows of 300" in head
    said = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert said["size"].endswith(": 0, 1, 10, ...")
    assert said["open"].startswith("boolean 2 ")
    assert said["day"] == "left out data.ignore"
    assert 'data.columns = {"id" = "categorical"}' in said["id"]
    assert said["mass"].startswith("left out '?'")
    assert said["unit"] == said["price"]
    assert "same value" in said["unit"]
    assert said["label"].startswith("target 2 ")
    assert "bad, good" in said["label"]


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        ({"target": "lable"}, {}, ["t.csv: no column 'lable', which data.target names", "did you mean 'label'"]),
        ({"ignore": ("prize",)}, {}, ["no column 'prize', which data.ignore names", "'price'"]),
        ({"group_column": "sight"}, {}, ["no column 'sight', which data.group_column names", "'site'"]),
        ({"time_column": "site"}, {}, ["data.time_column = 'site' has no order", "categorical"]),
        ({"time_column": "day"}, {"day": ""}, ["t.csv:9: column 'day'", "'' is not a date"]),
        ({"columns": {"size": "numeric"}}, {"size": "big"}, ["t.csv:9: column 'size'", "'big' is not a number"]),
        ({"columns": {"day": "date"}}, {"day": "soon"}, ["t.csv:9: column 'day'", "'soon' is not a date"]),
        ({"target": "day"}, {}, ["data.target = 'day' is a date"]),
        ({"test_fraction": 0.999}, {}, ["t.csv: too few rows to train on", "0 of its 20 rows"]),
        ({"ignore": ("size", "site", "open", "day", "price")}, {}, ["no column to predict from", "size: data.ignore"]),
    ],
)
def test_mistakes_name_the_key_or_the_line(
    tmp_path: Path, settings: dict[str, Any], change: dict[str, str], words: list[str]
) -> None:
    rows = [row | change if n == 7 else row for n, row in enumerate(ROWS[: 20 if "test_fraction" in settings else 300])]
    with pytest.raises(AifxError) as caught:
        open_table(tmp_path, rows, **settings)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint


def test_a_column_in_which_each_row_has_a_text_of_its_own_tells_nothing(tmp_path: Path) -> None:
    rows = [row | {"name": f"x{n}"} for n, row in enumerate(ROWS[:60])]
    write(tmp_path / "t.csv", rows)
    lines = TableFormat.summary(TableSection(path="t.csv", target="label"), Project(tmp_path))
    assert any("left out" in line for line in lines if " name " in line)
    (column,) = infer_columns("name", "categorical", [*(f"x{n}" for n in range(50)), ""], bins=8)
    assert (column.categories, column.num_categories) == ((), 2)  # whether there is a name says something


def test_targets_that_cannot_be_learned(tmp_path: Path) -> None:
    numbers = [row | {"label": "inf" if n == 7 else f"{n / 7:.3f}"} for n, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=r"\n.*'inf' is no number"):
        open_table(tmp_path, numbers)
    different = [row | {"label": f"text {n}"} for n, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=r"\n.*texts differ"):
        open_table(tmp_path, different)
    for texts in (["1", "1.0", "0"], ["no", "yes", "No"]):
        mixed = [row | {"label": texts[n % 3]} for n, row in enumerate(ROWS)]
        with pytest.raises(DataError, match=r"'(1|No)' and '(1\.0|no)'"):
            open_table(tmp_path, mixed)
        spec = open_table(tmp_path, mixed, columns={"label": "categorical"})[0].spec
        assert sorted(spec.classes) == sorted(texts)
    late = [row | {"size": str(n), "label": "bad" if n > 260 else "good"} for n, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=r"training rows .*'good'"):
        open_table(tmp_path, late, time_column="size")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    section = {"target": "label"}
    with pytest.raises(AifxError, match="one class only, 'good'"):
        open_table(tmp_path, [row | {"label": "good"} for row in ROWS])
    with pytest.raises(AifxError, match="column 'label' is empty"):
        open_table(tmp_path, [row | {"label": ""} for row in ROWS])
    for name, text, words in (
        ("a.txt", "x", "a table is a file of .jsonl, .csv, .parquet"),
        ("b.csv", "x,label\n", "b.csv: no rows"),
        ("c.csv", "x,label\n1,a\n2\n", "c.csv:3: the row does not fit the header"),
        ("d.jsonl", '{"x": 1, "label": "a"}\n{"x": 1}\n', "d.jsonl:2: the row has other columns\n.*label"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(AifxError, match=words):
            TableFormat.open(TableSection(path=name, **section), Project(tmp_path), tmp_path)


def test_rows_without_a_target_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row | {"label": "NA"} if n < 7 else row for n, row in enumerate(ROWS)]
    _, data = open_table(tmp_path, rows)
    assert sum(len(arrays["targets"]) for arrays in data.splits.values()) == 293
    assert "7 rows without 'label'" in caplog.text
    rows[20] = rows[20] | {"size": "big"}
    with pytest.raises(AifxError, match=r"t\.csv:22: column 'size'"):
        open_table(tmp_path, rows, columns={"size": "numeric"})


@pytest.mark.parametrize("mark", "./-")
def test_dates_with_the_day_first_are_left_out_with_a_word(tmp_path: Path, mark: str) -> None:
    rows = [row | {"seen": f"{n % 28 + 1}{mark}12{mark}2024"} for n, row in enumerate(ROWS)]
    open_table(tmp_path, rows)
    lines = TableFormat.summary(TableSection(path="t.csv", target="label"), Project(tmp_path))
    (line,) = [line for line in lines if line.split()[0] == "seen"]
    assert "left out" in line
    assert "write 2024-12-31" in line
    with pytest.raises(AifxError, match=r"such as '1.12.2024'"):
        open_table(tmp_path, rows, time_column="seen")


def test_each_example_knows_its_line(tmp_path: Path) -> None:
    rows = [row | {"label": "NA"} if n % 4 == 0 else row for n, row in enumerate(ROWS)]
    form, data = open_table(tmp_path, rows)
    lines = [",".join(row.values()) for row in rows]
    seen = []
    for split, arrays in data.splits.items():
        places = form.places(data, split, range(len(arrays["targets"])))
        numbers = [int(place.removeprefix("t.csv:")) - 2 for place in places]
        assert [form.spec.classes[label] for label in arrays["targets"]] == [lines[n].split(",")[-1] for n in numbers]
        assert form.places(data, split, [3, 0]) == [places[3], places[0]]
        seen += numbers
    assert sorted(seen) == [n for n in range(300) if n % 4]
    other = form.open_file(tmp_path / "t.csv")
    assert form.places(other, "test", [0, 224]) == [f"{tmp_path}/t.csv:3", f"{tmp_path}/t.csv:301"]
    assert list(form.baselines(other, "test")) == []  # which need training rows


def test_a_file_with_another_class_or_column(tmp_path: Path) -> None:
    form, _ = open_table(tmp_path)
    write(tmp_path / "june.csv", [row | {"label": "ugly"} for row in ROWS[:3]])
    with pytest.raises(AifxError, match=r"june.csv:2: .*\n'ugly' .*bad, good"):
        form.open_file(tmp_path / "june.csv")
    write(tmp_path / "july.csv", [{"size": "1", "label": "bad"}])
    with pytest.raises(AifxError, match=r"july\.csv: no column 'site'"):
        form.open_file(tmp_path / "july.csv")
    with pytest.raises(ValueError, match="no field 'site'"):
        form.encode({"size": "1"})
    with pytest.raises(ValueError, match="column 'size': 'big'"):
        form.encode(ROWS[0] | {"size": "big"})


def baselines(data: ArrayDataset, spec: DataSpec) -> dict[str, np.ndarray]:
    return dict(table_baselines(spec, data.splits["train"], data.splits["test"]["inputs"]))


@pytest.mark.slow  # OpenMP's threads wait by computing on a busy machine
def test_simple_predictors_of_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(2000):
        size, site = rng.normal(), rng.integers(2)
        p = 1 / (1 + np.exp(-(0.5 + 2 * size - 3 * site)))
        rows.append({"size": f"{size}", "site": "ab"[site], "label": str(int(rng.random() < p))})
    form, data = open_table(tmp_path, rows)
    found = baselines(data, form.spec)
    shares = np.bincount(data.splits["train"]["targets"]) / len(data.splits["train"]["targets"])
    np.testing.assert_allclose(np.exp(found["majority"]), np.tile(shares, (len(found["majority"]), 1)))
    inputs, size = data.splits["test"]["inputs"], form.spec.columns[0]
    margin = 0.5 + 2 * (inputs[:, 0] * size.scale + size.mean) - 3 * (inputs[:, 1] == 3)
    predicted = found["logistic"][:, 1] - found["logistic"][:, 0]
    assert np.corrcoef(predicted, margin)[0, 1] > 0.99
    assert np.abs(predicted - margin).mean() < 0.4


def test_the_linear_predictor_is_ridge_regression(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"a": str(rng.normal()), "b": str(rng.normal()) if rng.random() < 0.8 else ""} for _ in range(500)]
    rows = [row | {"label": str(3 * float(row["a"]) + (float(row["b"]) if row["b"] else 5))} for row in rows]
    form, data = open_table(tmp_path, rows)
    found = baselines(data, form.spec)
    assert set(found) >= {"mean", "linear"}

    def features(inputs: np.ndarray) -> np.ndarray:
        missing = np.isnan(inputs)
        parts = [np.where(missing[:, i], 0, inputs[:, i]) for i in (0, 1)]
        return np.stack([parts[0], missing[:, 0], parts[1], missing[:, 1], np.ones(len(inputs))], axis=1).astype(float)

    x, y = features(data.splits["train"]["inputs"]), data.splits["train"]["targets"]
    weights = np.linalg.solve(x.T @ x + L2 * len(x) * np.eye(5), x.T @ y)
    np.testing.assert_allclose(found["linear"][:, 0], features(data.splits["test"]["inputs"]) @ weights, atol=1e-4)
    assert np.abs(found["linear"][:, 0] - data.splits["test"]["targets"]).max() < 0.01
    np.testing.assert_allclose(found["mean"], 0, atol=1e-6)


@pytest.mark.slow  # OpenMP's threads wait by computing on a busy machine
def test_boosted_trees_see_classes_that_training_rows_lack(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    form, data = open_table(tmp_path)
    spec = DataSpec({}, classes=("a", "bad", "good"), columns=form.spec.columns)
    train = data.splits["train"] | {"targets": data.splits["train"]["targets"] + 1}
    outputs = dict(table_baselines(spec, train, data.splits["test"]["inputs"]))["boosted trees"]
    assert outputs.shape == (len(data.splits["test"]["targets"]), 3)
    np.testing.assert_allclose(softmax(outputs, axis=1).sum(axis=1), 1)
    assert (outputs.argmax(axis=1) == data.splits["test"]["targets"] + 1).mean() > 0.95
