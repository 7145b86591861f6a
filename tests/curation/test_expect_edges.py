"""`aifx data expect` at the edges: shares, far times, bounds that a type has no room for, names that SQL has, too."""

from __future__ import annotations

import json
import math
import random
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from contract_tables import Tables, add_table, catalog_of, dropped_by, judge, row_ids
from pyarrow import parquet

import aifx
from aifx.core.errors import AifxError
from aifx.curation.contracts import load_contract

NAN = math.nan


@pytest.mark.parametrize(("mostly", "filled"), [(0.07, 7), (0.55, 55), (0.57, 57), (0.29, 29)])
def test_a_share_is_exact(tmp_path: Path, mostly: float, filled: int) -> None:
    """0.55 times 100 is more than 55 in binary numbers."""
    version = add_table(tmp_path, "data", {"x": [1] * filled + [None] * (100 - filled), "y": [1] * 100})
    rules = [{"id": str(more), "column": "x", "check": "not_null", "mostly": mostly + more} for more in (0, 0.001)]
    _, outcomes = judge(tmp_path, version, rules)
    assert [one.outcome for one in outcomes] == ["kept", "refused"]


def test_times_that_no_calendar_of_python_has_are_no_newest_time(tmp_path: Path) -> None:
    columns: Tables = {
        "milliseconds": [1.7e12, 1.6e12],
        "large": [2**62, 1_700_000_000],
        "nan": [NAN, 1.7e9],
        "far": ["99999-01-01", "2024-01-01"],
        "infinite": ["infinity", "2024-01-01"],
        "last": [datetime(9999, 12, 31, 23, 59, 59)] * 2,
    }
    version = add_table(tmp_path, "data", columns)
    _, outcomes = judge(tmp_path, version, [{"column": one, "check": "freshness", "within": "9w"} for one in columns])
    newest = [None, "2023-11-14T22:13:20", "2023-11-14T22:13:20", "2024-01-01T00:00:00", "2024-01-01T00:00:00"]
    assert [one.value and str(one.value)[:19] for one in outcomes] == [*newest, "9999-12-31T23:59:59"]
    assert [one.outcome for one in outcomes] == ["refused"] * 5 + ["kept"]


def test_bounds_that_the_type_has_no_room_for(tmp_path: Path) -> None:
    columns: Tables = {"x": pa.array([1, 200], pa.uint8()), "d": pa.array([Decimal("1.5")] * 2, pa.decimal128(4, 2))}
    version = add_table(tmp_path, "data", columns)
    rules: list[dict[str, Any]] = [
        {"column": "x", "check": "range", "above": -1, "at_most": 300},
        {"column": "d", "check": "range", "at_most": 1000},
        {"column": "x", "check": "values", "values": [1, 200, 1000]},
    ]
    _, outcomes = judge(tmp_path, version, rules)
    assert [one.outcome for one in outcomes] == ["kept"] * 3


def test_columns_may_have_the_names_of_sql(tmp_path: Path) -> None:
    names = ["twin", "first", "rules", "row", "rule", "n", "v", "data", "dropped", "select", 'we"ird', "it's", "é\n🎉"]
    columns: Tables = {name: ["a", "b", "a"] for name in names}
    version = add_table(tmp_path, "data", {**columns, "x": [1, 2, 3]})
    ids = row_ids(version)
    rules: list[dict[str, Any]] = [{"check": "sql", "sql": "x > 1"}]
    for name in names:
        rules.append({"column": name, "check": "values", "values": ["a", "b"], "level": "warn"})
        rules.append({"column": name, "check": "unique", "level": "warn"})
    made, (first, *outcomes) = judge(tmp_path, version, rules)
    assert first.outcome == "dropped"
    assert {one.outcome for one in outcomes} == {"kept"}  # the copy of the first row, which is gone
    assert row_ids(made) == ids[1:]
    made, _ = judge(tmp_path, version, [{"column": "twin", "check": "unique"}])
    assert dropped_by(made) == {ids[2]: ("twin.unique", ids[0])}


def test_values_of_a_column_of_the_name_of_a_count(tmp_path: Path) -> None:
    colours = ["red", "blue", "blue"] * 100
    before = add_table(tmp_path, "before", {"n": colours, "v": colours})
    version = add_table(tmp_path, "after", {"n": colours, "v": colours})
    against = {"check": "distribution", "against": before.reference, "measure": "psi", "at_most": 0.1}
    _, outcomes = judge(tmp_path, version, [{**against, "column": name} for name in ("n", "v")])
    assert [one.value for one in outcomes] == [0, 0]


def test_distributions_of_numbers_that_are_not_finite_and_of_many_values(tmp_path: Path) -> None:
    numbers = [float(n) for n in range(1200)]
    keys = [f"k{n}" for n in range(1200)]
    before = add_table(tmp_path, "before", {"x": numbers, "key": keys})
    version = add_table(tmp_path, "after", {"x": [*[NAN, math.inf] * 300, *numbers[::2]], "key": keys})
    against = {"check": "distribution", "against": before.reference, "at_most": 0.1}
    rules = [{**against, "column": "x", "measure": "ks"}, {**against, "column": "key", "measure": "psi"}]
    _, (finite, many) = judge(tmp_path, version, rules)
    assert finite.value == pytest.approx(1 / 1200)
    assert (many.outcome, many.note) == ("not judged", "more than 1,000 values")


@pytest.mark.parametrize("name", ["__number", "__Twin", "file_index", "File_Row_Number"])
def test_a_column_of_the_name_of_one_that_is_added_is_refused(tmp_path: Path, name: str) -> None:
    version = add_table(tmp_path, "data", {"x": [1, 2], name: [7, 8]})
    with pytest.raises(AifxError, match=f"has a column '{name}'") as caught:
        judge(tmp_path, version, [{"column": "x", "check": "range", "below": 2}])
    assert f'EXCLUDE ("{name}")' in caught.value.hint


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"column": "Price", "check": "not_null"}, "columns 'Price' and 'price' of data@"),
    ({"column": "t", "check": "range", "at_least": 5}, "column 't' is string\n5 is no text"),
    ({"column": "t", "check": "values", "values": ["a", 1]}, "column 't' is string\n1 is no text"),
    ({"column": "b", "check": "no_later_than", "other": "b"}, "'b' is bool, and 'b' is bool"),
    ({"check": "sql", "sql": "age(d) > INTERVAL 1 DAY"}, "the SQL calls age(time), which is up to today"),
    ({"check": "sql", "sql": "x < (SELECT avg(x) FROM data USING SAMPLE 1 ROWS)"}, "the SQL takes a sample"),
    ({"check": "sql", "sql": "d < CURRENT_TIMESTAMP"}, "the SQL calls CURRENT_TIMESTAMP"),
]


def test_rules_that_make_no_sense_are_named_before_a_row_is_read(tmp_path: Path) -> None:
    days = [datetime(2026, 1, 1, tzinfo=UTC)] * 2
    columns: Tables = {"x": [1, 2], "t": ["a", "b"], "b": [True, False], "d": days, "Price": [1, 2], "price": [3, 4]}
    version = add_table(tmp_path, "data", columns)
    for rule, message in FAULTS:
        with pytest.raises(AifxError, match=re.escape(message)) as caught:
            judge(tmp_path, version, [rule])
        assert "rule" in caught.value.what
    assert catalog_of(tmp_path).versions("data") == [version.manifest.version]


def test_columns_with_the_names_of_functions_can_be_judged(tmp_path: Path) -> None:
    version = add_table(tmp_path, "data", {"uuid": [1, 2], "version": [1, 2], "now": [1, 2]})
    rules = [{"id": sql, "check": "sql", "sql": f"{sql} > 0"} for sql in ("uuid", "version", "now")]
    _, outcomes = judge(tmp_path, version, rules)
    assert [one.outcome for one in outcomes] == ["kept"] * 3


def test_an_aggregate_is_one_value(tmp_path: Path) -> None:
    version = add_table(tmp_path, "data", {"x": [1, 2]})
    rules = [
        {"id": f"r{number}", "check": "aggregate", "sql": sql, "at_least": 1}
        for number, sql in enumerate(("(SELECT count(*) FROM data)", "1", "NULL"))
    ]
    _, outcomes = judge(tmp_path, version, rules)
    assert [(one.value, one.outcome) for one in outcomes] == [(2, "kept"), (1, "kept"), (None, "refused")]


def test_a_distribution_that_cannot_be_measured_is_named(tmp_path: Path) -> None:
    before = add_table(tmp_path, "before", {"t": ["1"] * 200})
    version = add_table(tmp_path, "after", {"t": ["one"] * 200})
    rule = {"id": "cast", "check": "distribution", "sql": "CAST(t AS INT)", "measure": "ks", "at_most": 1}
    with pytest.raises(AifxError, match="rule cast: the SQL cannot be run"):
        judge(tmp_path, version, [{**rule, "against": before.reference}])


def some_columns() -> Tables:
    """Columns of 300 rows of each type, and with the values that need care."""
    rows, chosen = 300, random.Random(3)
    texts = ["".join(chosen.choice("aé🎉\n\t\"'\\\x7f") for _ in range(chosen.randrange(9))) for _ in range(rows)]
    times = range(rows)
    return {
        "all null": pa.nulls(rows),
        "nearly all null": [1, *[None] * (rows - 1)],
        "half null": [1.5, None] * (rows // 2),
        "one text": ["the same"] * rows,
        "empty": [""] * rows,
        "texts": texts,
        "few": [chosen.choice(["a", 'b"c', "d\\e", "é\n\x7f\x01", ""]) for _ in times],
        "dictionary": pa.array([chosen.choice("xyz") for _ in times]).dictionary_encode(),
        "all NaN": [NAN] * rows,
        "a NaN": [NAN, *map(float, range(rows - 1))],
        "infinite": [math.inf, *map(float, range(rows - 1))],
        "half": np.random.default_rng(0).random(rows).astype(np.float16),
        "single": pa.array([chosen.random() for _ in times], pa.float32()),
        "huge": pa.array([2**64 - 1 - n for n in times], pa.uint64()),
        "widest": [-1.7e308, 1.7e308] * (rows // 2),
        "decimal": [Decimal(n) / 100 for n in times],
        "zeros": [-0.0, 0.0] * (rows // 2),
        "one number": [5] * rows,
        "truth": [True, False] * (rows // 2),
        "day": [date(1, 1, 1), *[date(9999, 12, 31)] * (rows - 1)],
        "zoned": pa.array(times, pa.timestamp("ms", "Europe/Berlin")),
        "nanoseconds": pa.array(times, pa.timestamp("ns")),
        "list": [[n] for n in times],
        "bytes": [bytes([n % 256]) for n in times],
        'na"me\\ é\n': list(times),
    }


def test_a_version_keeps_what_is_inferred_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aifx.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    parquet.write_table(pa.table(some_columns()), "rows.parquet")
    aifx.data_add("rows", "rows.parquet", kind="table", license="MIT")
    written = aifx.data_expect_infer("rows")
    found = aifx.data_expect("rows")
    assert [(one.id, one.outcome, one.broken) for one in found.rules if one.outcome != "kept"] == []
    assert [one.id for one in found.rules] == list(written.rules)
    (one,) = [rule for rule in load_contract(tmp_path / "rules.toml") if rule.name == "one text.values"]
    assert one.values == ("the same",)
    assert json.loads(json.dumps(found.document()))["is_accepted"]
