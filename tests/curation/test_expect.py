"""`aifx data expect`: the rules of contracts against planted faults and against judges written in Python."""

from __future__ import annotations

import math
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from adding import LIMITS
from contract_tables import Tables, add_table, catalog_of, dropped_by, judge, row_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_server import s3_server
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp

from aifx.core.errors import AifxError
from aifx.curation import contract_checks
from aifx.curation.contract_checks import expect
from aifx.curation.contract_history import contract_history
from aifx.curation.contracts import Expectation, load_contract, outcomes_of, refusing
from aifx.curation.execution import execute
from aifx.curation.row_history import explain_row
from aifx.data.versions.catalog import open_catalog

DAY = datetime(2026, 2, 1, tzinfo=UTC)
NAN = math.nan

ROW_RULES: list[tuple[dict[str, Any], list[Any], list[int]]] = [
    ({"check": "not_null"}, [1, None, 3, None], [1, 3]),
    ({"check": "range", "at_least": 0, "below": 10}, [0, -1, 9, 10, None], [1, 3]),
    ({"check": "range", "above": 0.5, "at_most": 2.5}, [0.5, 0.6, 2.5, 2.6, NAN, None], [0, 3, 4]),
    ({"check": "range", "at_least": 0}, [1.0, NAN, -1.0, None], [1, 2]),
    ({"check": "range", "at_least": "2026-01-31"}, [DAY, DAY - timedelta(days=2), None], [1]),
    ({"check": "range", "at_most": "m"}, ["a", "z", None], [1]),
    ({"check": "length", "at_least": 1, "at_most": 3}, ["", "a", "äöü", "abcd", None], [0, 3]),
    ({"check": "length", "at_most": 1}, [[1], [1, 2], None], [1]),
    ({"check": "length", "at_most": 2}, [b"ab", b"abc", None], [1]),
    ({"check": "matches", "pattern": "^[a-z]+$"}, ["ab", "aB", "", "it's", None], [1, 2, 3]),
    ({"check": "values", "values": ["a", "it's"]}, ["a", "b", "it's", None], [1]),
    ({"check": "values", "values": [1, 2]}, [1, 3, 2, None], [1]),
    ({"check": "values", "values": [True]}, [True, False, None], [1]),
    ({"check": "unique"}, [5, 6, 5, None, None, 5], [2, 5]),
    ({"check": "sql", "sql": "x % 2 = 0 -- even"}, [2, 3, None], [1]),
]


@pytest.mark.parametrize(("rule", "values", "broken"), ROW_RULES, ids=[str(rule) for rule, _, _ in ROW_RULES])
def test_rows_that_break_a_rule_are_left_out(
    tmp_path: Path, rule: dict[str, Any], values: list[Any], broken: list[int]
) -> None:
    column = {} if rule["check"] == "sql" else {"column": "x"}
    version = add_table(tmp_path, "data", {"x": values}, files=2)
    ids = row_ids(version)
    made, (outcome,) = judge(tmp_path, version, [{**rule, **column}])
    assert (outcome.broken, outcome.rows, outcome.outcome) == (len(broken), len(values), "dropped")
    assert list(outcome.ids) == [ids[row] for row in broken]
    assert row_ids(made) == [one for row, one in enumerate(ids) if row not in broken]
    assert dropped_by(made).keys() == {ids[row] for row in broken}


def test_a_warning_leaves_rows_and_mostly_judges_the_whole(tmp_path: Path) -> None:
    version = add_table(tmp_path, "data", {"x": [*range(9), None]})
    rule = {"column": "x", "check": "not_null"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"level": "warn"}, "warned"),
        ({"mostly": 0.9}, "kept"),
        ({"mostly": 0.91}, "refused"),
        ({"mostly": 1.0}, "refused"),
        ({"mostly": 0.91, "level": "warn"}, "warned"),
    ]
    for more, outcome in cases:
        made, (found,) = judge(tmp_path, version, [{**rule, **more}])
        assert (found.outcome, found.broken, made.manifest.rows) == (outcome, 1, 10), more


def test_the_first_rule_drops_a_row_and_a_copy_names_its_twin(tmp_path: Path) -> None:
    version = add_table(tmp_path, "data", {"k": [1, 1, 1, 2, 2], "x": [-1, 5, 6, -1, -1]}, files=3)
    ids = row_ids(version)
    positive: dict[str, Any] = {"column": "x", "check": "range", "at_least": 0}
    rules: list[dict[str, Any]] = [
        {"column": "k", "check": "unique"},
        positive,
        {"id": "small", "check": "sql", "sql": "x < 6"},
    ]
    made, outcomes = judge(tmp_path, version, rules)
    # A row that another rule drops is no original: the second row is the first with k = 1.
    assert row_ids(made) == [ids[1]]
    assert dropped_by(made) == {
        ids[0]: ("x.range", None), ids[2]: ("small", None), ids[3]: ("x.range", None), ids[4]: ("x.range", None)
    }  # fmt: skip
    assert [one.broken for one in outcomes] == [0, 3, 1]
    copies = add_table(tmp_path, "copies", {"k": [7, 8, 7]}, files=3)
    first, _, third = row_ids(copies)
    made, _ = judge(tmp_path, copies, rules[:1])
    assert dropped_by(made) == {third: ("k.unique", first)}
    (history,) = explain_row(catalog_of(tmp_path), third, None, ["copies"]).histories
    last = history.steps[-1]
    assert last.twin is not None
    assert (last.step, last.outcome, last.rule, last.twin.row) == ("expect", "dropped", "k.unique", first)


def test_references_to_another_data_set(tmp_path: Path) -> None:
    add_table(tmp_path, "shops", {"id": [1, 2, None], "land": ["DE", "FR", None]})
    version = add_table(tmp_path, "data", {"shop": [1, 3, None, 2], "land": ["DE", "DE", "FR", "DE"]}, files=2)
    ids = row_ids(version)
    one = {"column": "shop", "check": "references", "to": "shops", "to_column": "id"}
    both = {**one, "id": "both", "column": ["shop", "land"], "to_column": ["id", "land"], "level": "warn"}
    made, outcomes = judge(tmp_path, version, [one, both])
    assert [list(found.ids) for found in outcomes] == [[ids[1]], [ids[1], ids[3]]]
    assert made.manifest.step.settings["rules"][0]["to"] == catalog_of(tmp_path).manifest("shops").whole_reference


PAIRS: list[tuple[list[Any], list[Any], list[int]]] = [
    ([1, 2, None, 4], [1, 1, 1, None], [1]),
    ([DAY, DAY, None], [DAY, DAY - timedelta(microseconds=1), DAY], [1]),
    (
        ["2026-01-01T00:30:00+02:00", "2026-01-01", "soon", "", "2026-01-02"],
        ["2025-12-31T22:30:00", "2025-12-31", "2026-01-01", "2020-01-01", "  "],
        [1, 2],
    ),
]


@pytest.mark.parametrize(("features", "events", "leaks"), PAIRS)
def test_a_feature_from_the_future_is_found(
    tmp_path: Path, features: list[Any], events: list[Any], leaks: list[int]
) -> None:
    version = add_table(tmp_path, "data", {"feature": features, "event": events})
    rule = {"column": "feature", "check": "no_later_than", "other": "event"}
    made, (outcome,) = judge(tmp_path, version, [rule])
    assert [row_ids(version).index(row) for row in outcome.ids] == leaks
    assert made.manifest.rows == len(features) - len(leaks)


def test_times_with_and_without_a_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    naive = pa.array([datetime(2026, 1, 1, 12)] * 2, pa.timestamp("us"))
    zoned = pa.array([datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in (12, 11)], pa.timestamp("us", "Asia/Tokyo"))
    version = add_table(tmp_path, "data", {"feature": naive, "event": zoned})
    _, (outcome,) = judge(tmp_path, version, [{"column": "feature", "check": "no_later_than", "other": "event"}])
    assert list(outcome.ids) == row_ids(version)[1:]


def test_rules_about_the_whole_see_the_rows_that_are_left(tmp_path: Path) -> None:
    columns = {"x": [1.0, 2.0, 100.0], "day": ["2026-02-20", "2026-02-28T12:00:00Z", "2027-01-01"]}
    version = add_table(tmp_path, "data", columns)
    low = {"column": "x", "check": "range", "below": 50}
    whole: list[tuple[dict[str, Any], object, str]] = [
        ({"check": "rows", "at_least": 2, "at_most": 2}, 2, "kept"),
        ({"check": "rows", "above": 2, "id": "many"}, 2, "refused"),
        ({"check": "aggregate", "sql": "avg(x)", "at_most": 1.5}, 1.5, "kept"),
        ({"check": "aggregate", "sql": "max(x) > 9", "below": 1, "id": "max", "level": "warn"}, 0.0, "kept"),
        ({"check": "aggregate", "sql": "avg(x) FILTER (x > 99)", "below": 1, "id": "none"}, None, "refused"),
        ({"column": "day", "check": "freshness", "within": "12h"}, "2026-02-28T12:00:00.000000+00:00", "kept"),
        ({"column": "day", "check": "freshness", "within": "11.9h", "id": "old", "level": "warn"}, ..., "warned"),
        ({"column": "x", "check": "type", "type": "number"}, "double", "kept"),
        ({"column": "x", "check": "type", "type": "double", "id": "exact"}, "double", "kept"),
        ({"column": "x", "check": "type", "type": "float64", "id": "alias"}, "double", "kept"),
        ({"column": "x", "check": "type", "type": "text", "id": "text", "level": "warn"}, "double", "warned"),
    ]
    made, (first, *outcomes) = judge(tmp_path, version, [low, *(rule for rule, _, _ in whole)])
    assert first.outcome == "dropped"
    for found, (rule, value, outcome) in zip(outcomes, whole, strict=True):
        assert found.outcome == outcome, rule
        assert value is ... or found.value == value, rule
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert [one.id for one in refusing(made.manifest, now)] == ["many", "none"]
    later = {one.id: one.outcome for one in outcomes_of(made.manifest, now + timedelta(hours=1))}
    assert later["day.freshness"] == "refused"  # the same version, an hour later


def test_other_rules_of_a_column_of_a_wrong_type_are_not_judged(tmp_path: Path) -> None:
    version = add_table(tmp_path, "data", {"x": ["1", "two"], "y": [1, 2]})
    rules: list[dict[str, Any]] = [
        {"column": "x", "check": "range", "at_least": 0},
        {"column": "y", "check": "no_later_than", "other": "x"},
        {"column": "x", "check": "unique"},
        {"column": "x", "check": "freshness", "within": "1d"},
        {"column": "y", "check": "range", "at_least": 2},
    ]
    _, outcomes = judge(tmp_path, version, [{"column": "x", "check": "type", "type": "number"}, *rules])
    assert [one.outcome for one in outcomes] == ["refused", *["not judged"] * 4, "dropped"]
    assert {one.note for one in outcomes[1:5]} == {"x is string"}
    with pytest.raises(AifxError, match=r"rule x\.range: column .x. is string"):
        judge(tmp_path, version, rules)


def test_distribution_against_a_version(tmp_path: Path) -> None:
    dice = np.random.default_rng(3)
    old, new = dice.normal(size=2000), dice.normal(0.5, 1.2, size=1500)
    colours = ["red"] * 1000 + ["blue"] * 1000
    other = ["red"] * 1000 + ["blue"] * 250 + ["green"] * 250
    before = add_table(tmp_path, "before", {"x": old, "c": colours})
    version = add_table(tmp_path, "after", {"x": new, "c": other})
    against = {"check": "distribution", "against": before.reference, "at_most": 0.1, "level": "warn"}
    rules = [
        {**against, "id": "ks", "column": "x", "measure": "ks"},
        {**against, "id": "js", "column": "c", "measure": "jensen_shannon"},
        {**against, "id": "psi", "column": "x", "measure": "psi"},
        {**against, "id": "sql", "sql": "abs(x)", "measure": "ks", "at_most": 1},
        {**against, "id": "self", "column": "x", "measure": "psi", "against": "before"},
    ]
    _, outcomes = judge(tmp_path, version, rules)
    found = {one.id: one for one in outcomes}
    assert found["ks"].value == pytest.approx(ks_2samp(old, new).statistic)
    assert found["js"].value == pytest.approx(jensenshannon([0.5, 0.5, 0], [4 / 6, 1 / 6, 1 / 6], 2))
    edges = np.quantile(old, np.linspace(0, 1, 11)[1:-1])
    counts = [np.histogram(side, [-np.inf, *edges, np.inf])[0] + 0.5 for side in (old, new)]
    shares = [one / one.sum() for one in counts]
    assert found["psi"].value == pytest.approx(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
    assert found["sql"].value == pytest.approx(ks_2samp(abs(old), abs(new)).statistic)
    assert [one.outcome for one in outcomes] == ["warned", "warned", "warned", "kept", "warned"]
    few = add_table(tmp_path, "few", {"x": new[:50], "c": other[:50]})
    _, outcomes = judge(tmp_path, few, [{**rules[0], "level": "error"}])
    assert (outcomes[0].outcome, outcomes[0].note) == ("not judged", "fewer than 100 rows have a value")


def test_at_most_a_thousand_ids(tmp_path: Path) -> None:
    version = add_table(tmp_path, "data", {"x": range(3000)}, files=3)
    _, (outcome,) = judge(tmp_path, version, [{"column": "x", "check": "range", "at_least": 500, "below": 1500}])
    assert outcome.broken == 2000
    ids = row_ids(version)
    assert list(outcome.ids) == ids[:500] + ids[1500:2000]
    assert len(version.shards) == 3


def test_a_version_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add_table(tmp_path, "data", {"x": [1, 2]})
    rule = {"check": "rows", "at_least": 3}
    first = judge(tmp_path, version, [rule])
    monkeypatch.setattr(contract_checks, "_judge", None)  # the rows would be read
    assert judge(tmp_path, version, [rule]) == first
    assert judge(tmp_path, first[0], [rule]) == first


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"column": "y", "check": "not_null"}, "rule y.not_null: no column 'y' in data@"),
    ({"column": "x", "check": "no_later_than", "other": "z"}, "rule x.no_later_than: no column 'z'"),
    ({"column": "x", "check": "no_later_than", "other": "t"}, "'x' is int64, and 't' is string"),
    ({"column": "x", "check": "matches", "pattern": "a"}, "column 'x' is int64"),
    ({"column": "t", "check": "matches", "pattern": "("}, "rule t.matches: the SQL cannot be run"),
    ({"column": "x", "check": "range", "at_least": "many"}, "rule x.range: column 'x' is int64, and 'many' is not"),
    ({"column": "x", "check": "values", "values": ["1", "many"]}, "column 'x' is int64, and 'many' is not"),
    ({"check": "sql", "sql": "nope > 1"}, "rule sql: the SQL cannot be run"),
    ({"check": "sql", "sql": "avg(x) > 1"}, "rule sql: the SQL cannot be run"),
    ({"check": "sql", "sql": "x > 1)) FROM data; DROP VIEW data; SELECT ((1"}, "rule sql: the SQL cannot be run"),
    ({"check": "sql", "sql": "x > 0) OR (1 = 1"}, "rule sql: the SQL cannot be run"),
    ({"check": "sql", "sql": "random() < 0.5"}, "rule sql: the SQL calls random"),
    ({"check": "sql", "sql": "t > current_date"}, "rule sql: the SQL calls current_date"),
    ({"check": "sql", "sql": "x IN (SELECT a FROM read_csv('/etc/passwd'))"}, "rule sql: the SQL cannot be run"),
    ({"check": "aggregate", "sql": "x", "at_least": 0}, "rule aggregate: the SQL cannot be run"),
    ({"column": "x", "check": "references", "to": "nope"}, "rule x.references: no data set 'nope'"),
    ({"column": "x", "check": "references", "to": "data"}, "rule x.references: 'data' names the data set itself"),
    ({"column": "t", "check": "distribution", "against": "data", "measure": "psi", "at_most": 1}, "names the data set"),
]  # fmt: skip


def test_rules_that_a_version_cannot_have(tmp_path: Path) -> None:
    version = add_table(tmp_path, "data", {"x": [1, 2], "t": ["a", "b"]})
    for rule, message in FAULTS:
        with pytest.raises(AifxError, match=re.escape(message)):
            judge(tmp_path, version, [rule])
    assert catalog_of(tmp_path).versions("data") == [version.manifest.version]
    rules: list[dict[str, Any]] = [
        {"check": "rows", "at_least": 1},
        {"id": "cast", "check": "sql", "sql": "CAST(t AS INTEGER) > 1"},
    ]
    with pytest.raises(AifxError, match="rule cast: the SQL cannot be run") as caught:  # found in a row
        judge(tmp_path, version, rules)
    assert "'a'" not in str(caught.value.why)


FILES = [
    ('[[rule]]\ncheck = "nulls"', "check: 'nulls' is not one"),
    ('[[rule]]\ncheck = "not_null"', "not_null requires 'column'"),
    ('[[rule]]\ncheck = "rows"', "rows requires a bound"),
    ('[[rule]]\ncheck = "rows"\nat_least = "3"', "at_least: '3' is not a number"),
    ('[[rule]]\ncheck = "rows"\nat_least = 3\nmostly = 0.5', "rows does not take 'mostly'"),
    ('[[rule]]\ncheck = "not_null"\ncolumn = ["a", "b"]', "not_null takes one column"),
    ('[[rule]]\ncheck = "not_null"\ncolumn = "a"\nmostly = 1.5', "mostly"),
    ('[[rule]]\ncheck = "not_null"\ncolumn = "a"\nlevel = "fatal"', "level"),
    ('[[rule]]\ncheck = "freshness"\ncolumn = "a"\nwithin = "soon"', "within: 'soon' is no time"),
    ('[[rule]]\ncheck = "not_null"\ncolumn = "a"\n' * 2, "two rules have the id 'a.not_null'"),
    ('[[rule]]\ncheck = "range"\ncolumn = "a"\nat_most = nan', "at_most: nan is no bound"),
    ('[[rule]]\ncheck = "values"\ncolumn = "a"\nvalues = [1, nan]', "values: nan cannot be compared"),
    ('[[rule]]\ncheck = "rows"\nat_leest = 3', "at_leest: no such key; did you mean 'at_least'?"),
    ('[[rule]]\ncheck = "rows"\nat_least = [3]', "at_least: [3] cannot be used"),
    ('[[rule]]\ncheck = "range"\ncolumn = "a"\nat_least = true', "a truth value is no bound"),
    ('[[rule]]\ncheck = "range"\ncolumn = "a"\nat_least = 5\nat_most = 4', "no number is at least 5 and at most 4"),
    ('[[rule]]\ncheck = "rows"\nabove = 5\nat_most = 5.0', "no number is above 5 and at most 5.0"),
    (
        '[[rule]]\ncheck = "references"\ncolumn = "a"\nto = "b"\nto_column = ["a", "b"]',
        "to_column: 2 columns for 1",
    ),
    ('[[rule]]\ncheck = "type"\ncolumn = "a"\ntype = "intger"', "'intger' is no type; did you mean 'integer'?"),
    ("rules = 3", "it has no [[rule]]|'rules' is not [[rule]]"),
    ("[[rule", "not TOML"),
    ("", "has no [[rule]]"),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_files_that_are_no_contract(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(AifxError) as caught:
        load_contract(tmp_path / "rules.toml")
    said = f"{caught.value.what}: {caught.value.why}"
    assert any(one in said for one in message.split("|")), said
    assert "rules.toml" in said


def test_a_contract_is_no_device() -> None:
    with pytest.raises(AifxError, match="/dev/zero is a device"):
        load_contract(Path("/dev/zero"))


VALUES = st.lists(
    st.tuples(
        st.none() | st.integers(-3, 3), st.none() | st.sampled_from(["", "a", "b", "ab"]), st.none() | st.integers(0, 4)
    ),
    min_size=1,
    max_size=30,
)


def broken_in_python(rule: dict[str, Any], row: tuple[Any, Any, Any]) -> bool:
    x, t, y = row
    match rule["check"]:
        case "not_null":
            return x is None
        case "range":
            return x is not None and not -1 <= x < 2
        case "values":
            return t is not None and t not in ("a", "")
        case "length":
            return t is not None and len(t) > 1
        case "no_later_than":
            return None not in (x, y) and x > y
    raise AssertionError(rule)


RANDOM_RULES: list[dict[str, Any]] = [
    {"check": "not_null", "column": "x"},
    {"check": "range", "column": "x", "at_least": -1, "below": 2},
    {"check": "values", "column": "t", "values": ["a", ""]},
    {"check": "length", "column": "t", "at_most": 1},
    {"check": "no_later_than", "column": "x", "other": "y"},
]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=VALUES, chosen=st.permutations(range(5)), count=st.integers(1, 5), files=st.integers(1, 3))
@pytest.mark.slow
def test_random_rules_agree_with_python(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], chosen: list[int], count: int, files: int
) -> None:
    folder = tmp_path_factory.mktemp("random")
    x, t, y = zip(*rows, strict=True)
    columns = {"x": pa.array(x, pa.int64()), "t": pa.array(t, pa.string()), "y": pa.array(y, pa.int64())}
    version = add_table(folder, "data", columns, min(files, len(rows)))
    rules = [RANDOM_RULES[number] for number in chosen[:count]] + [{"check": "unique", "column": ["x", "t"]}]
    made, outcomes = judge(folder, version, rules)
    first: dict[int, str] = {}
    for rule, outcome in zip(rules[:-1], outcomes, strict=False):
        bad = [number for number, row in enumerate(rows) if broken_in_python(rule, row)]
        assert outcome.broken == len(bad)
        for number in bad:
            first.setdefault(number, outcome.id)
    seen: set[Any] = set()
    for number, row in enumerate(rows):
        if number not in first and None not in row[:2]:
            if row[:2] in seen:
                first[number] = "x+t.unique"
            seen.add(row[:2])
    ids = row_ids(version)
    assert {row: rule for row, (rule, _) in dropped_by(made).items()} == {ids[n]: rule for n, rule in first.items()}
    assert made.manifest.dropped_by == dict(sorted(Counter(first.values()).items()))
    assert row_ids(made) == [row for number, row in enumerate(ids) if number not in first]


def test_the_settings_of_a_rule_are_the_rule() -> None:
    rule = Expectation.model_validate({"column": "x", "check": "range", "at_least": datetime(2026, 1, 1).date()})
    assert rule.settings == {"column": ["x"], "check": "range", "at_least": "2026-01-01"}
    assert Expectation.model_validate(rule.settings) == rule


@pytest.mark.slow
def test_data_sets_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    with s3_server(monkeypatch):
        catalog = open_catalog("s3://bucket/datasets")
        for name, values in (("shops", [1, 2]), ("data", [1, 2, 3])):
            execute(Tables((), pa.table({"x": values}), 1), name, catalog, LIMITS)
        rules = [
            Expectation(check="references", column=("x",), to="shops"),
            Expectation(check="rows", at_least=3),
        ]
        step = expect(catalog.open("data"), rules, catalog, "rules.toml")
        made = execute(step, "data", catalog, LIMITS, accepts=lambda manifest: not refusing(manifest, DAY))
        assert not made.is_accepted
        assert catalog.latest("data") == step.parents[0].manifest.version
        (dropped, rows) = contract_history(catalog, "data").rules
        assert (dropped.versions[0].broken, rows.versions[0].value) == (1, 2)
        assert row_ids(catalog.open(made.version.reference)) == ["p0-0", "p0-1"]
