"""`aifx data join`: the newest row before each event, compared with a search in plain Python."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pytest
from pyarrow import parquet
from stored_versions import make_version

import aifx
from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project
from aifx.data.versions.catalog import open_catalog

DAY = datetime(2024, 5, 1)
ROWS: TypeAlias = Mapping[str, Any]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "aifx.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def joined(project: Project, events: ROWS, features: ROWS, **settings: Any) -> list[dict[str, Any]]:
    """The rows of a join of these events and features, each in three shards."""
    make_version(project, "events", events, "table", 3)
    make_version(project, "prices", features, "table", 3)
    made = aifx.data_join("events", "prices", **{"key": ["k"], "asof": "time"} | settings)
    return rows_of(project, made.reference)


def rows_of(project: Project, reference: str) -> list[dict[str, Any]]:
    paths = sorted((project.root / "datasets" / reference.replace("@", "/") / "shards").glob("*.parquet"))
    return [row for path in paths for row in parquet.read_table(path).to_pylist()]


def newest(event: Mapping[str, Any], features: ROWS, **settings: Any) -> int | None:
    """The place of the row that is joined to an event."""
    found: int | None = None
    for place, (key, time) in enumerate(zip(features["k"], features["time"], strict=True)):
        if None in (key, time, event["k"], event["time"]) or key != event["k"] or time > event["time"]:
            continue
        if settings.get("strictly_before") and time == event["time"]:
            continue
        if found is None or time >= features["time"][found]:
            found = place
    age = settings.get("age")
    if found is not None and age is not None and event["time"] - features["time"][found] > age:
        return None
    return found


def some(chosen: random.Random, count: int) -> dict[str, list[Any]]:
    """Rows in no order, with few keys and times, so that there are ties, and with nulls."""
    keys = [chosen.choice(["a", "b", "c", None]) for _ in range(count)]
    times = [None if chosen.random() < 0.1 else DAY + timedelta(hours=chosen.randrange(60)) for _ in range(count)]
    return {"k": keys, "time": times, "value": [chosen.randrange(1000) for _ in range(count)]}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("given", "age"), [({}, None), ({"strictly_before": True}, None), ({"tolerance": "5h"}, timedelta(hours=5))]
)
def test_each_event_has_the_newest_row_that_is_not_later(
    project: Project, seed: int, given: dict[str, Any], age: timedelta | None
) -> None:
    chosen = random.Random(seed)
    events, features = some(chosen, 60), some(chosen, 80)
    rows = joined(project, events, features, **given)
    assert [row["_row"] for row in rows] == [f"r-{number}" for number in range(60)]
    for row in rows:
        place = newest(row, features, age=age, **given)
        expected: tuple[Any, ...] = (None, None, None)
        if place is not None:
            expected = (f"r-{place}", features["time"][place], features["value"][place])
        assert (row["prices_row"], row["prices_time"], row["prices_value"]) == expected
        assert row["prices_time"] is None or row["prices_time"] <= row["time"]  # nothing leaks
    assert any(row["prices_row"] for row in rows)


def test_planted_rows_of_the_future_are_not_joined(project: Project) -> None:
    times = [DAY + timedelta(days=day) for day in range(20)]
    planted = {"k": ["a"] * 40, "time": [*times, *(time + timedelta(microseconds=1) for time in times)]}
    planted["answer"] = ["known"] * 20 + ["leak"] * 20
    rows = joined(project, {"k": ["a"] * 20, "time": times}, planted)
    assert [row["answer"] for row in rows] == ["known"] * 20
    strictly = joined(project, {"k": ["a"] * 20, "time": times}, planted, strictly_before=True, prefix="x_")
    assert [row["x_answer"] for row in strictly] == [None, *["leak"] * 19]  # a day before, and so no leak any more


def test_a_contract_finds_no_leak_in_a_join_and_each_one_that_is_planted(project: Project) -> None:
    chosen = random.Random(5)
    events, features = some(chosen, 300), some(chosen, 500)
    rule = 'check = "no_later_than"\ncolumn = "prices_time"\nother = "time"\n'
    (project.root / "rules.toml").write_text(f"[[rule]]\n{rule}")
    rows = joined(project, events, features)
    (kept,) = aifx.data_expect("events").rules
    assert (kept.outcome, kept.broken) == ("kept", 0)
    leaks = {place for place, row in enumerate(rows) if row["time"] is not None and place % 30 == 0}
    times = [
        row["time"] + timedelta(seconds=1) if place in leaks else row["prices_time"] for place, row in enumerate(rows)
    ]
    make_version(project, "leaky", {**events, "prices_time": times}, "table", 3)
    (found,) = aifx.data_expect("leaky").rules
    assert found.broken == len(leaks) > 5
    assert set(found.ids) == {f"r-{place}" for place in leaks}


@pytest.mark.parametrize(
    ("events", "features"),
    [
        (pa.array([DAY], pa.timestamp("us", "UTC")), pa.array([DAY], pa.timestamp("us", "Europe/Berlin"))),
        (["2024-05-01T00:00:00Z"], ["2024-05-01T02:00:00+02:00", "2024-05-01T02:00:00.000001+0200"]),
        (["2024-05-01T00:00:00Z"], pa.array([DAY, DAY + timedelta(microseconds=1)], pa.timestamp("ns", "UTC"))),
        (["2024-05-01 00:00"], pa.array([DAY, DAY + timedelta(seconds=1)], pa.timestamp("s"))),
        (["2024-05-01"], pa.array([DAY.date(), date(2024, 5, 2)], pa.date32())),
        (pa.array([7], pa.int64()), pa.array([7, 8], pa.uint8())),
        (pa.array([7.5], pa.float32()), pa.array([7.5, float("nan"), None], pa.float64())),
        (pa.array([2**62], pa.int64()), pa.array([2**62, 2**62 + 1], pa.int64())),
        (
            pa.array([1714521600000000000], pa.int64()).cast(pa.timestamp("ns")),
            pa.array([1714521600000000000, 1714521600000000001], pa.int64()).cast(pa.timestamp("ns")),
        ),
        (pa.array([datetime(9999, 1, 1)], pa.timestamp("us")), pa.array([datetime(1, 1, 1)], pa.timestamp("us"))),
    ],
)
def test_times_of_each_kind_are_compared_exactly(project: Project, events: Any, features: Any) -> None:
    """The first of the features is in time; all others are later by the least that there is."""
    count = len(features)
    rows = joined(
        project, {"k": ["a"] * len(events), "time": events}, {"k": ["a"] * count, "time": features, "v": range(count)}
    )
    assert [row["v"] for row in rows] == [0]


@pytest.mark.parametrize(
    ("events", "features", "message"),
    [
        (pa.array([DAY], pa.timestamp("us", "UTC")), pa.array([DAY], pa.timestamp("us")), "without a zone"),
        (["2024-05-01T00:00Z"], ["2024-05-01T00:00"], "without a zone"),
        (pa.array([DAY]), pa.array([DAY.date()]), "on a day"),
        (["2024-05-01 00:00"], ["yesterday"], "row r-0 of prices@\\w+ is no time: 'yesterday'"),
        (["2024-13-01 00:00"], ["2024-05-01 00:00"], "row r-0 of events@\\w+ is no time"),
        (["2024-05-01 00:00"], ["2024-05-01 00:00", "2024-05-01"], "it holds a .* and a "),
        (pa.array([DAY]), [1], "the times cannot be compared"),
        (pa.nulls(1), pa.array([DAY]), "events@\\w+ holds values of the type null in 'time'"),
    ],
)
def test_times_that_only_a_guess_could_compare_are_refused(
    project: Project, events: Any, features: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        joined(project, {"k": ["a"] * len(events), "time": events}, {"k": ["a"] * len(features), "time": features})
    assert len(list((project.root / "datasets/events").glob("*/manifest.json"))) == 1


def test_the_columns_keep_their_types_and_a_join_again_is_the_same_version(project: Project) -> None:
    features = {
        "k": pa.array([1, 2], pa.int32()),
        "known": pa.array([DAY, DAY], pa.timestamp("ms", "UTC")),
        "f": pa.array([1.5, None], pa.float32()),
        "d": pa.array(["1.10", "2.20"]).cast(pa.decimal128(8, 2)),
        "l": pa.array([[1, None], []], pa.list_(pa.int16())),
        "s": pa.array([{"x": 1}, {"x": None}], pa.struct([("x", pa.uint8())])),
        "b": pa.array([b"\0\xff", b""], pa.binary()),
        "filename": pa.array(["a", "b"]),
        "nothing": pa.nulls(2),
        "p": pa.array([True, None]),
    }
    make_version(project, "facts", features, "table", 2)
    make_version(project, "events", {"k": pa.array([2, 1, 3], pa.uint64()), "at": [DAY] * 3}, "table")
    with pytest.raises(UsageError, match="without a zone"):
        aifx.data_join("events", "facts", key=["k"], asof="at:known")
    zoned = {"k": [2, 1, 3], "at": pa.array([DAY] * 3, pa.timestamp("us", "UTC"))}
    make_version(project, "orders", zoned, "table", 2)
    before = aifx.data_ls("orders").versions[0].reference
    made = aifx.data_join("orders", "facts", key=["k"], asof="at:known")
    assert made.parents[0] == before
    assert (made.facts["matched"], made.facts["unmatched"]) == (2, 1)
    shard = next((project.root / "datasets" / made.reference.replace("@", "/")).glob("shards/*"))
    types = parquet.read_schema(shard)
    source = parquet.read_schema(next((project.root / "datasets/facts").glob("*/shards/*")))
    for name in ("known", "f", "d", "l", "s", "b", "filename", "p"):
        assert types.field(name).type == source.field(name).type, name
    rows = rows_of(project, made.reference)
    assert [row["facts_row"] for row in rows] == ["r-1", "r-0", None]
    assert (rows[1]["l"], rows[1]["b"], rows[2]["b"]) == ([1, None], b"\0\xff", None)

    again = aifx.data_join("orders", "facts", key=["k"], asof="at:known")
    assert (again.reference, again.is_new) == (made.reference, False)
    from_parent = aifx.data_join(before, "facts", key=["k"], asof="at:known")
    assert (from_parent.reference, from_parent.is_new) == (made.reference, False)
    with pytest.raises(UsageError, match="two columns would be named 'facts_row'") as twice:
        aifx.data_join("orders", "facts", key=["k"], asof="at:known", columns=["f"])
    assert twice.value.hint == "--prefix NAME_"
    other = aifx.data_join("orders", "facts", key=["k"], asof="at:known", columns=["f"], prefix="two_")
    assert {"two_row", "two_known", "two_f"} <= set(rows_of(project, other.reference)[0])


def test_names_that_differ_in_the_case_of_letters_alone(project: Project) -> None:
    """DuckDB takes them for one."""
    make_version(project, "events", {"k": [1, 2], "time": [5, 6], "Price": [7, 8]}, "table")
    make_version(project, "prices", {"k": [1, 2], "time": [4, 4], "price": [1, 2]}, "table")
    made = aifx.data_join("events", "prices", key=["k"], asof="time", set_name=False)
    (first, _) = rows_of(project, made.reference)
    assert (first["Price"], first["prices_price"]) == (7, 1)
    make_version(project, "caps", {"x": [1], "at": [4], "K": [1]}, "table")
    with pytest.raises(UsageError, match="two columns would be named 'K'"):
        aifx.data_join("events", "caps", key=[], asof="time:at", prefix="")
    make_version(project, "twice", {"k": [1], "time": [4], "a": [1], "A": [2]}, "table")
    with pytest.raises(UsageError, match="columns 'a' and 'A' of twice@"):
        aifx.data_join("events", "twice", key=["k"], asof="time")


def test_a_join_with_itself_again_is_the_same_version(project: Project) -> None:
    make_version(project, "orders", {"k": ["a", "a"], "time": [1, 2], "price": [5, 6]}, "table")
    settings: dict[str, Any] = {"key": ["k"], "asof": "time", "strictly_before": True, "prefix": "last_"}
    made = aifx.data_join("orders", "orders", **settings)
    assert [row["last_price"] for row in rows_of(project, made.reference)] == [None, 5]
    for events, features in (("orders", "orders"), ("orders", made.parents[1]), (made.parents[0], made.parents[1])):
        again = aifx.data_join(events, features, **settings)
        assert (again.reference, again.is_new, again.parents) == (made.reference, False, made.parents)
    with pytest.raises(UsageError, match="two columns would be named 'last_row'"):
        aifx.data_join("orders", "orders", **settings | {"tolerance": "1"})


def test_lineage_and_why_know_both_parents_and_the_row(project: Project) -> None:
    joined(project, {"k": ["a"], "time": [DAY]}, {"k": ["a"], "time": [DAY], "v": [1]})
    versions = aifx.data_lineage("events").versions
    assert [one.step for one in versions] == ["join", "given", "given"]
    (history,) = aifx.data_why("r-0", dataset="events").histories  # the row of the features has this id, too
    assert [(step.step, step.outcome, step.joined) for step in history.steps] == [
        ("given", "added", None),
        ("join", "kept", f"r-0 of {versions[2].reference}"),
    ]
    assert [step.step for step in aifx.data_report("events").steps] == ["given", "join"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key": ["j"]}, "has no column 'j'"),
        ({"asof": "tim"}, "has no column 'tim'"),
        ({"asof": "time:tim"}, r"prices@\w+ has no column 'tim'"),
        ({"columns": ["w"]}, r"prices@\w+ has no column 'w'"),
        ({"tolerance": "soon"}, "'soon' cannot be used"),
        ({"tolerance": "7"}, "'time' holds times"),
        ({"key": ["n"]}, "--key n: its values cannot be compared"),
    ],
)
def test_a_mistake_is_named_and_makes_nothing(project: Project, settings: dict[str, Any], message: str) -> None:
    rows = {"k": ["a"], "time": [DAY], "n": [1]}
    with pytest.raises(UsageError, match=message):
        joined(project, rows, rows | {"n": ["1"], "v": [2]}, **settings)
    assert len(list((project.root / "datasets/events").glob("*/manifest.json"))) == 1


def test_a_data_set_without_rows_or_a_mix_is_refused(project: Project) -> None:
    rows = {"text": ["a"], "k": ["a"], "time": [DAY]}
    for name in ("one", "two"):
        make_version(project, name, rows)
    aifx.data_mix("blend", "one:1", "two:1")
    with pytest.raises(UsageError, match="is a mix"):
        aifx.data_join("one", "blend", key=["k"], asof="time")
    make_version(project, "none", {name: [] for name in rows} | {"text": pa.array([], pa.string())}, shards=0)
    with pytest.raises(DataError, match="has no rows"):
        aifx.data_join("one", "none", key=["k"], asof="time")


def test_without_a_key_there_is_one_series(project: Project) -> None:
    events = {"time": [DAY, DAY + timedelta(days=2)]}
    rows = joined(project, events, {"time": [DAY + timedelta(days=1)], "rate": [1.5]}, key=[])
    assert [row["rate"] for row in rows] == [None, 1.5]


def test_the_licences_of_both_are_compared(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    (project.root / "a.csv").write_text("k,time\na,2024-05-01 09:00:00\n")
    (project.root / "b.csv").write_text("k,time,v\na,2024-05-01 09:00:00,1\n")
    aifx.data_add("a", "a.csv", license="CC-BY-SA-4.0")
    aifx.data_add("b", "b.csv", license="CC-BY-NC-4.0")
    made = aifx.data_join("a", "b", key=["k"], asof="time")
    assert "CC-BY-NC-4.0 (b@" in caplog.text
    (version,) = [one for one in aifx.data_ls("a").versions if one.reference == made.reference]
    assert version.licenses == ("CC-BY-NC-4.0", "CC-BY-SA-4.0")


def test_a_recipe_joins_what_it_makes_first(project: Project) -> None:
    (project.root / "orders.csv").write_text("k,time\na,2024-05-02 09:00:00\n")
    (project.root / "prices.csv").write_text("k,time,price\na,2024-05-01 09:00:00,2\na,2024-05-03 09:00:00,3\n")
    recipe = project.root / "recipe.toml"
    recipe.write_text(
        """
        [orders]
        steps = [
            { add = { sources = ["orders.csv"], license = "MIT" } },
            { join = { features = "prices", key = ["k"], asof = "time" } },
        ]
        [prices]
        steps = [{ add = { sources = ["prices.csv"], license = "MIT" } }]
        """
    )
    made = aifx.data_make("orders")
    assert [one.name for one in made.data_sets] == ["prices", "orders"]
    (row,) = rows_of(project, str(made.data_sets[1].reference))
    assert (row["price"], row["prices_time"]) == (2, "2024-05-01 09:00:00")
    assert not any(step.is_new for one in aifx.data_make().data_sets for step in one.steps)
    recipe.write_text(recipe.read_text().replace('"prices", key', '"orders", key'))
    with pytest.raises(aifx.core.errors.ConfigError, match="reads itself"):
        aifx.data_make("orders")


def test_new_events_cost_what_they_are_and_a_new_price_what_it_changes(project: Project) -> None:
    def write(path: str, *rows: str) -> None:
        (project.root / path).parent.mkdir(exist_ok=True)
        (project.root / path).write_text("\n".join(["k,time,n", *rows]) + "\n")

    def join() -> tuple[list[int | None], int]:
        """The joined numbers, and the shards that the new version holds itself."""
        aifx.data_add("prices", "prices", license="MIT")
        reference = aifx.data_add("events", "events", license="MIT").reference
        made = aifx.data_join(reference, "prices", key=["k"], asof="time").reference
        version = open_catalog(project.datasets, project).open(made)
        numbers = [n for path in version.shards for n in parquet.read_table(path)["prices_n"].to_pylist()]
        return numbers, sum(not shard.holder for shard in version.manifest.shards)

    write("prices/1.csv", "a,2024-05-01 09:00:00,1")
    write("events/1.csv", "a,2024-05-02 09:00:00,10", "b,2024-05-02 09:00:00,11")
    assert join() == ([1, None], 1)
    write("events/2.csv", "a,2024-05-03 09:00:00,12")
    assert join() == ([1, None, 1], 1)
    write("prices/2.csv", "a,2024-05-02 21:00:00,2")
    assert join() == ([1, None, 2], 1)  # the last event alone has another price


@pytest.mark.slow
def test_more_rows_than_memory_go_to_the_disk(project: Project) -> None:
    """2 million events and 3 million rows, in 256 MB: 60 MB of them are DuckDB's."""
    chosen = random.Random(0)
    count = 2_000_000
    keys = pa.array([chosen.randrange(50_000) for _ in range(count)])
    times = pa.array([chosen.randrange(10**9) for _ in range(count)])
    text = pa.array([f"{number:040d}" for number in range(count)])
    make_version(project, "events", {"k": keys, "time": times}, "table", 8)
    known = {"k": pa.concat_arrays([keys, keys[: count // 2]]), "time": pa.concat_arrays([times, times[count // 2 :]])}
    known["v"] = pa.concat_arrays([text, text[: count // 2]])
    make_version(project, "prices", known, "table", 8)
    made = aifx.data_join("events", "prices", key=["k"], asof="time", memory="256MiB")
    assert made.facts["matched"] == count  # each event is in the features, too
