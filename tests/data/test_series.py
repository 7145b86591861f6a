"""Windows over series: what is in them, that no split sees another's targets, and files that cannot be used."""

from __future__ import annotations

import hashlib
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from aifx.core.errors import AifxError, DataError
from aifx.core.project import Project
from aifx.data.readers.rows import Row, input_file
from aifx.data.sections import SeriesSection
from aifx.data.series import SeriesFormat
from aifx.data.series_windows import SeriesData
from aifx.data.splits import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LENGTHS = {"a": (0, 60), "b": (10, 45), "c": (52, 8)}
"""First day and days of each series. c begins when validation does."""
MISSING = {("a", 20), ("a", 50), ("b", 30), ("b", 31)}


def value_of(name: str, day: int) -> float:
    return 1000.0 * (ord(name) - 96) + day


def day_name(day: int) -> str:
    return (date(2001, 1, 1) + timedelta(days=day)).isoformat()


def write(root: Path, text: str = "", **settings: object) -> tuple[SeriesFormat, SeriesData]:
    """The three series, or `text`, opened. Missing values are empty cells or have no row."""
    if not text:
        lines = ["shop,time,value,price,rain"]
        for name, (first, length) in LENGTHS.items():
            for day in reversed(range(first, first + length)):
                if (name, day) == ("b", 31):
                    continue
                value = "" if (name, day) in MISSING else value_of(name, day)
                lines.append(f"{name},{day_name(day)},{value},{day % 5},{day % 3 or 'NA'}")
        text = "\n".join(lines) + "\n"
        settings = {"series": "shop"} | settings
    (root / "data").mkdir(exist_ok=True)
    (root / "data/series.csv").write_text(text)
    (root / "assets").mkdir(exist_ok=True)
    plain = {"context": 8, "horizon": 3, "validation_steps": 8, "test_steps": 7}
    section = SeriesSection.model_validate(plain | settings)
    return SeriesFormat.open(section, Project(root), root / "assets")


def targets_of(data: SeriesData, split: Split) -> list[tuple[str, int]]:
    """The series and day of each target that counts, found by its value."""
    found = []
    source = data.source(split, 4, seed=None)
    for step in range(source.num_batches or 0):
        batch = source.read(step, slice(0, 4))
        values = batch["targets"] * batch["scale"][:, None] + batch["location"][:, None]
        found += values[batch["weights"] > 0].round(2).tolist()
    return [(chr(96 + int(value // 1000)), round(value % 1000)) for value in found]


def test_no_split_has_targets_of_another(tmp_path: Path) -> None:
    _, data = write(tmp_path)
    days = {split: targets_of(data, split) for split in SPLITS}
    expected: dict[Split, set[tuple[str, int]]] = {split: set() for split in SPLITS}
    for name, (first, length) in LENGTHS.items():
        for day in range(first, first + length):
            split: Split = "train" if day < 45 else "validation" if day < 53 else "test"
            begins_without_past = day == first if split != "train" else day < first + 8
            if (name, day) not in MISSING and not begins_without_past:
                expected[split].add((name, day))
    assert {split: set(found) for split, found in days.items()} == expected
    for split in ("validation", "test"):
        assert len(days[split]) == len(set(days[split]))  # each step is a target once
    assert max(day for _, day in days["train"]) < min(day for _, day in days["validation"])


LAST = {"split": "last", "validation_steps": None, "test_steps": None}


def test_the_last_steps_of_each_series_are_its_test(tmp_path: Path) -> None:
    _, data = write(tmp_path, **LAST)
    days = {split: set(targets_of(data, split)) for split in SPLITS}
    ends = {name: first + length for name, (first, length) in LENGTHS.items()}
    assert days["test"] == {(name, end - ahead) for name, end in ends.items() for ahead in (1, 2, 3)}
    assert days["validation"] == {(name, end - ahead) for name, end in ends.items() for ahead in (4, 5, 6)}
    assert {name: max(day for which, day in days["train"] if which == name) for name in "ab"} == {"a": 53, "b": 48}
    assert data.source("test", 1, seed=None).num_examples == 3  # one forecast of the horizon for each series
    assert write(tmp_path, **LAST | {"test_steps": 6})[1].source("test", 1, seed=None).num_examples == 6


@pytest.mark.parametrize("settings", [{}, LAST])
def test_series_without_a_part_in_a_split_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, object]
) -> None:
    with caplog.at_level("INFO"):
        form, data = write(tmp_path, **settings)
    assert data.has_targets("train").tolist() == [True, True, False]
    assert data.has_targets("test").tolist() == [True, True, True]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    splits = ["train"] if settings else ["train", "validation"]  # c begins on the last day of validation
    assert len(warned) == len(splits)
    for split, line in zip(splits, warned, strict=True):
        assert split in line
        assert "1 of 3" in line
        assert line.endswith(": c")
    test_line = next(record.getMessage() for record in caplog.records if ": test " in record.getMessage())
    first = 52 if settings else 53  # b, whose last day is 54, has its last 3 days first
    assert f"{day_name(first)} to {day_name(59)}" in test_line
    assert "3 series" in test_line
    assert "last 3 steps" in test_line or not settings
    again = form.open_file(tmp_path / "data/series.csv")
    assert {day for name, day in targets_of(again, "test") if name == "c"} == set(range(57 if settings else 53, 60))


def test_a_window_is_what_went_before(tmp_path: Path) -> None:
    _, data = write(tmp_path)
    batch = data.source("validation", 4, seed=None).read(0, slice(0, 1))
    values = batch["inputs"][0] * batch["scale"] + batch["location"]
    np.testing.assert_allclose(values, [value_of("a", day) for day in range(37, 45)], rtol=1e-6)
    assert batch["observed"].tolist() == [[1] * 8]
    assert batch["inputs"].mean() == pytest.approx(0, abs=1e-6)
    assert batch["inputs"].std() == pytest.approx(1, rel=1e-6)
    missing = data.source("test", 4, seed=None).read(0, slice(0, 1))  # day 50 of a has no value
    assert missing["observed"][0].tolist() == [day != 50 for day in range(45, 53)]
    assert missing["inputs"][0, 5] == 0
    assert {name: array.dtype.name for name, array in batch.items()} == {
        name: field.dtype for name, field in data.spec.fields.items()
    }
    assert {name: array.shape[1:] for name, array in batch.items()} == {
        name: field.shape for name, field in data.spec.fields.items()
    }


def test_covariates_that_are_known_ahead_and_in_the_past(tmp_path: Path) -> None:
    form, data = write(tmp_path, known=["price"], past=["rain"])
    batch = data.source("validation", 4, seed=None).read(0, slice(0, 1))
    (mean, deviation), (rain_mean, rain_deviation) = form.facts.covariates
    price = batch["known"][0, :, 0] * deviation + mean
    np.testing.assert_allclose(price, [day % 5 for day in range(37, 48)], atol=1e-5)
    rain = [(day % 3 - rain_mean) / rain_deviation if day % 3 else 0.0 for day in range(37, 45)]
    np.testing.assert_allclose(batch["past"][0, :, 0], rain, atol=1e-5)
    assert rain_mean == pytest.approx(1.5, abs=0.05)  # of the training alone, missing ones left out


def test_batches_are_a_function_of_seed_step_and_rows(tmp_path: Path) -> None:
    _, data = write(tmp_path, known=["price"])
    source = data.source("train", 8, seed=3)
    whole = source.read(5, slice(0, 8))
    parts = [data.source("train", 8, seed=3).read(5, rows) for rows in (slice(0, 3), slice(3, 8))]
    for name, array in whole.items():
        np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]))
    assert any(
        not np.array_equal(whole[name], data.source("train", 8, seed=4).read(5, slice(0, 8))[name]) for name in whole
    )
    num_windows = data.source("train", 1, seed=None).num_examples
    epoch = [source.read(step, slice(0, 8))["location"] for step in range(num_windows // 8)]
    assert len(np.unique(np.concatenate(epoch))) > 0.9 * (num_windows // 8 * 8)


def test_rows_that_fill_the_last_batch_have_no_weight(tmp_path: Path) -> None:
    _, data = write(tmp_path)
    source = data.source("test", 100, seed=None)
    batch = source.read(0, slice(0, 100))
    count = data.source("test", 1, seed=None).num_examples
    assert source.num_batches == 1
    assert not batch["weights"][count:].any()
    assert data.counts(batch) == {"examples": count}
    strided = write(tmp_path, stride=4)[1]
    assert strided.source("train", 1, seed=None).num_examples < data.source("train", 1, seed=None).num_examples / 3


def test_a_constant_window_and_one_without_values(tmp_path: Path) -> None:
    rows = [f"{day_name(day)},{'' if 10 <= day < 20 else 5}" for day in range(60)]
    _, data = write(tmp_path, "time,value\n" + "\n".join(rows))
    source = data.source("train", 64, seed=None)
    batch = source.read(0, slice(0, 64))
    assert np.isfinite(np.concatenate([array.ravel() for array in batch.values()])).all()
    empty = ~batch["observed"].any(axis=1) & batch["scale"].astype(bool)
    assert empty.any()
    assert not batch["weights"][empty].any()
    assert set(batch["scale"][batch["observed"].any(axis=1)]) == {5.0}


def test_the_digest_covers_values_and_splits(tmp_path: Path) -> None:
    digest = write(tmp_path)[1].digest
    assert write(tmp_path)[1].digest == digest
    assert write(tmp_path, test_steps=8)[1].digest != digest
    assert write(tmp_path, split="last")[1].digest != digest
    text = (tmp_path / "data/series.csv").read_text()
    assert write(tmp_path, text.replace("1003.0", "1003.5"), series="shop")[1].digest != digest


def test_columns_of_year_month_and_day_are_a_time(tmp_path: Path) -> None:
    rows = [(date(2001, 1, 1) + timedelta(days=day), day) for day in range(60)]
    text = "y,m,d,value\n" + "\n".join(f"{day.year},{day.month},{day.day},{value}" for day, value in rows)
    form, data = write(tmp_path, text, time=["y", "m", "d"])
    assert str(form.facts.calendar.grid) == "1 day"
    iso = "time,value\n" + "\n".join(f"{day},{value}" for day, value in rows)
    assert write(tmp_path, iso)[1].digest == data.digest


def test_parquet_is_as_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    days = [date(2001, 1, 1) + timedelta(days=day) for day in range(60)]
    csv = "time,value\n" + "\n".join(f"{day},{'' if n == 7 else n}" for n, day in enumerate(days))
    digest = write(tmp_path, csv)[1].digest
    table = pyarrow.table({"time": days, "value": [None if n == 7 else float(n) for n in range(60)]})
    parquet.write_table(table, tmp_path / "data/series.parquet")
    assert write(tmp_path, csv, path="data/series.parquet")[1].digest == digest


ROWS = "".join(f"{day_name(day)},{day}\n" for day in range(60))


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("time,value\n", {}, ["series.csv: no rows", "head"]),
        (f"time,value\n{ROWS}{day_name(3)},9\n", {}, ["series.csv:62", "is also that of", "series.csv:5", "series = "]),
        (f"time,value\n{ROWS}2001-03-02T12:00,9\n", {}, ["series.csv:62: a time between two steps", "1 day", "round"]),
        (f"time,value\n{ROWS}{day_name(60)},nine\n", {}, ["series.csv:62", "column 'value': 'nine' is not a number"]),
        (f"time,value\n{ROWS}{day_name(60)},inf\n", {}, ["series.csv:62", "column 'value': 'inf' is not a number"]),
        (f"time,value\n{ROWS}tomorrow,9\n", {}, ["series.csv:62", "'tomorrow' is not a time", "ISO 8601"]),
        (f"time,value\n{ROWS}", {"value": "vale"}, ["series.csv:2", "no field 'vale'", "did you mean 'value'?"]),
        (f"time,value\n{ROWS}", {"time": "date"}, ["series.csv:2", "no field 'date'"]),
        (f"time,value\n{ROWS}", {"known": ["price"]}, ["series.csv:2", "no field 'price'"]),
        (f"time,value\n{ROWS}", {"horizon": 50}, ["no windows in the train split", "data.horizon = 50"]),
        (f"time,value\n{ROWS}", {"test_steps": 55}, ["no steps are left to train on", "data.test_steps"]),
        (f"time,value\n{day_name(0)},1\n", {}, ["too few rows", "no series has two rows"]),
        (
            "time,value\n2001-01-01T00:00:00,1\n2001-01-01T00:00:01,2\n2001-02-01T00:00:00,2\n",
            {},
            ["almost all steps are missing", "1 second", "longer steps"],
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(AifxError) as caught:
        write(tmp_path, text, **settings)
    for word in words:
        assert word in str(caught.value)


def test_a_file_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "series.txt").write_text("one\n")
    form, _ = write(tmp_path)
    with pytest.raises(AifxError, match=r"'txt'"):
        form.open_file(tmp_path / "series.txt")


def test_a_file_is_a_test_split(tmp_path: Path) -> None:
    form, data = write(tmp_path)
    again = form.open_file(tmp_path / "data/series.csv")
    days = targets_of(again, "test")
    assert len(days) == len(set(days))
    assert {day for name, day in days if name == "a"} == set(range(8, 60)) - {20, 50}
    with pytest.raises(DataError, match="train split"):
        again.source("train", 4, seed=0)
    assert again.spec == data.spec


def test_a_file_that_is_no_longer_than_the_context(tmp_path: Path) -> None:
    form, _ = write(tmp_path, "time,value\n" + "".join(f"{day_name(day)},{day}\n" for day in range(60)))
    path = tmp_path / "short.csv"
    path.write_text("time,value\n" + "".join(f"{day_name(day)},{day}\n" for day in range(5)))
    with pytest.raises(DataError, match=r"\n.*data.context = 8 .* 5"):
        form.open_file(path).source("test", 4, seed=None)


def test_a_covariate_that_training_did_not_vary_has_no_tiny_scale(tmp_path: Path) -> None:
    lines = [f"{day_name(day)},{day},{0.1 if day < 55 else 0.2}\n" for day in range(60)]
    _, data = write(tmp_path, "time,value,price\n" + "".join(lines), known=("price",))
    assert data.facts.covariates[0][1] == 1.0
    assert data.covariates[data.starts[0] + 59, 0] == pytest.approx(0.1)


def test_a_naive_forecast_is_the_season_before(tmp_path: Path) -> None:
    form, data = write(tmp_path, horizon=9)
    naive = {name: values for name, values in form.baselines(data, "test") if name != "boosted trees"}
    assert list(naive) == ["7 steps before"]  # no series is 364 days long
    for name, values in naive.items():
        season = int(name.split()[0])
        batch = data.source("test", 9, seed=None).read(0, slice(0, len(values)))
        found = values * batch["scale"][:, None] + batch["location"][:, None]
        # Day 60 has the value of day 53 - 7 too: day 53 is not known yet.
        first, context = 53, batch["location"][0]
        lags = [season if ahead < season else 2 * season for ahead in range(9)]
        there = [first + ahead - lag for ahead, lag in enumerate(lags)]
        expected = [value_of("a", day) if day >= 0 and ("a", day) not in MISSING else context for day in there]
        np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    assert form.facts.calendar.grid.seasons == (7, 364)


def test_a_file_has_the_naive_forecasts_alone(tmp_path: Path) -> None:
    form, _ = write(tmp_path)
    other = form.open_file(tmp_path / "data/series.csv")
    found = dict(form.baselines(other, "test"))
    assert list(found) == ["7 steps before"]  # no series is 364 days long
    assert len(found["7 steps before"]) == other.source("test", 1, seed=None).num_examples


@pytest.mark.slow
def test_boosted_trees_forecast_a_trend_that_seasons_miss(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    days = range(400)
    text = "time,value,price\n" + "".join(f"{day_name(n)},{n % 5 * 10 + (n * 7) % 3},{n % 5}\n" for n in days)
    form, data = write(tmp_path, text, known=["price"], validation_steps=40, test_steps=40)
    found = dict(form.baselines(data, "test"))
    batch = data.source("test", 40, seed=None).read(0, slice(0, len(found["boosted trees"])))
    errors = {
        name: float((np.abs(values - batch["targets"]) * batch["weights"]).sum()) for name, values in found.items()
    }
    assert found["boosted trees"].shape == batch["targets"].shape
    assert errors["boosted trees"] < 0.2 * errors["7 steps before"]


def test_rows_to_forecast_are_the_end_of_each_series(tmp_path: Path) -> None:
    form, data = write(tmp_path)
    rows = list(form.read_rows(input_file(str(tmp_path / "data/series.csv"))))
    assert [row.values["shop"] for row in rows] == ["a", "b", "c"]
    batch = form.encode(rows[0].values)
    assert set(data.spec.fields) - set(batch) == {"targets", "weights"}
    values = batch["inputs"][0] * batch["scale"] + batch["location"]
    np.testing.assert_allclose(values, [value_of("a", day) for day in range(52, 60)], rtol=1e-6)
    records = form.records(rows[0], {"value": [1.0, 2.0, 3.0], "quantiles": {"0.5": [1.0, 2.0, 3.0]}})
    assert [record["time"] for record in records] == [day_name(60), day_name(61), day_name(62)]
    assert records[1] == {
        "file": str(tmp_path / "data/series.csv"),
        "shop": "a",
        "time": day_name(61),
        "value": 2.0,
        "quantiles": {"0.5": 2.0},
        "reason": "",
    }
    short = form.encode(rows[2].values)
    assert short["observed"].sum() == 8
    in_python = {
        "shop": "a",
        "time": [day_name(day) for day in range(52, 60)],
        "value": [value_of("a", d) for d in range(52, 60)],
    }
    for name, array in form.encode(in_python).items():
        np.testing.assert_array_equal(array, batch[name])


def test_covariates_that_are_known_ahead_are_needed_ahead(tmp_path: Path) -> None:
    form, _ = write(tmp_path, known=["price"])
    row = {"shop": "a", "time": [day_name(day) for day in range(20)], "value": [float(d) for d in range(20)]}
    row["price"] = [1.0] * 20
    with pytest.raises(ValueError, match="'price' is missing"):
        form.encode(row)
    ahead = row | {"value": [*map(float, range(17)), None, None, None]}
    batch = form.encode(ahead)
    assert batch["known"].shape == (1, 11, 1)
    records = form.records(Row("rows", 1, "row 1", ahead), {"value": [0.0, 1.0, 2.0]})
    assert [record["time"] for record in records] == [day_name(17), day_name(18), day_name(19)]
    with pytest.raises(ValueError, match="has no value"):
        form.encode(row | {"value": [None] * 20})
    with pytest.raises(ValueError, match="equally long"):
        form.encode(row | {"value": [1.0]})
    for value in (None, 1.0, "1.0"):  # `encode` says what is wrong with these
        assert form.skip_reason(row | {"value": value}) == ""
    with pytest.raises(ValueError, match="whole number of steps"):
        form.encode(row | {"time": [f"{time}T01:00" for time in row["time"]]})


def test_what_training_inferred_is_kept(tmp_path: Path) -> None:
    form, data = write(tmp_path, past=["rain"])
    loaded = SeriesFormat.load(form.section, form.spec, tmp_path / "assets")
    assert loaded == form
    digest = hashlib.sha256((tmp_path / "assets/series.json").read_bytes()).hexdigest()
    assert write(tmp_path, past=["rain"])[1].digest == data.digest
    assert hashlib.sha256((tmp_path / "assets/series.json").read_bytes()).hexdigest() == digest
    (tmp_path / "assets/series.json").write_text("{}")
    with pytest.raises(DataError, match=r"series\.json does not describe"):
        SeriesFormat.load(form.section, form.spec, tmp_path / "assets")
