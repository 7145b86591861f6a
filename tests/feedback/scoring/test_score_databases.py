"""`aifx score` of and into SQLite and DuckDB: each row once, position and request in the transaction of the rows."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import adbc_driver_postgresql
import duckdb
import inprocess
import pytest

from aifx.checkpoint.manifest import Manifest
from aifx.feedback.scoring import scoring

DIALECTS = ("sqlite", "duckdb")
ROWS = 40


def connect(project: Path, dialect: str) -> Any:
    path = project / f"shop.{dialect}"
    return sqlite3.connect(path, isolation_level=None) if dialect == "sqlite" else duckdb.connect(str(path))


def run(project: Path, dialect: str, *statements: str) -> list[tuple[Any, ...]]:
    connection = connect(project, dialect)
    for statement in statements:
        found = connection.execute(statement)
    rows: list[tuple[Any, ...]] = found.fetchall()
    connection.close()
    return rows


def add_rows(project: Path, dialect: str, numbers: range) -> None:
    values = ", ".join(f"({n}, {n % 7 - 3}, {n % 5 - 2}, 'é')" for n in numbers)
    make = "CREATE TABLE IF NOT EXISTS orders (id BIGINT, x DOUBLE PRECISION, y DOUBLE PRECISION, note VARCHAR(9))"
    run(project, dialect, make, f"INSERT INTO orders VALUES {values}")


def score(project: Path, source: str, target: str, *args: str, code: int = 0) -> Any:
    done = inprocess.run(["score", "main", source, target, *args, "--json"], project, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout) if code == 0 else json.loads(done.stdout)["error"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several commits of a call."""
    monkeypatch.setattr(scoring, "COMMIT_ROWS", 16)
    monkeypatch.setattr(scoring, "LOOK_ROWS", 8)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_table_into_a_table_of_the_same_database(project: Path, dialect: str) -> None:
    add_rows(project, dialect, range(ROWS))
    orders, scores = (f"{dialect}:///shop.{dialect}/{name}" for name in ("orders", "scores"))
    first = score(project, orders, scores, "--key", "id", "--request", "a.1")
    assert (first["rows"], first["scored"], first["known"]) == (ROWS, ROWS, 0)
    add_rows(project, dialect, range(ROWS, ROWS + 5))
    assert score(project, orders, scores, "--key", "id", "--request", "a.1") == first | {"is_repeated": True}
    second = score(project, orders, scores, "--key", "id")
    assert (second["scored"], second["known"]) == (5, ROWS)
    found = run(project, dialect, "SELECT key, count(*), min(label), min(request) FROM scores GROUP BY key")
    assert {row[0] for row in found} == {str(n) for n in range(ROWS + 5)}
    assert {row[1] for row in found} == {1}
    assert {row[2] for row in found} == {"up", "down"}
    assert sorted(str(row[3]) for row in found) == ["None"] * 5 + ["a.1"] * ROWS


@pytest.mark.parametrize("dialect", DIALECTS)
def test_since_last_reads_what_has_grown(project: Path, dialect: str) -> None:
    orders, args = f"{dialect}:///shop.{dialect}/orders", ("--key", "id", "--since-last", "--growing", "id")
    add_rows(project, dialect, range(ROWS))
    first = score(project, orders, "scores", *args)
    assert (first["rows"], first["position"]) == (ROWS, {"column": "id", "value": ROWS - 1})
    assert score(project, orders, "scores", *args)["rows"] == 1  # the last one could have a twin
    add_rows(project, dialect, range(ROWS, ROWS + 7))
    third = score(project, orders, "scores", *args)
    assert (third["rows"], third["scored"], third["known"]) == (8, 7, 1)
    url, query = f"{dialect}:///shop.{dialect}", ("--query", "SELECT * FROM orders WHERE id > 41;")
    assert score(project, url, "scores", *query, *args)["known"] == 5  # the same rows have the same ids
    run(project, dialect, "INSERT INTO orders VALUES (NULL, 1, 1, '')")
    assert "'id'" in score(project, orders, "scores", *args, code=2)["what"]


@pytest.mark.parametrize("target", ["scores", "sqlite:///shop.sqlite/scores"])
def test_models_that_take_turns_have_positions_of_their_own(
    project: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So has a model for each key column."""
    orders, args = "sqlite:///shop.sqlite/orders", ("--since-last", "--growing", "id")
    add_rows(project, "sqlite", range(4))
    for turn, (first, second) in enumerate([(4, 4), (3, 3)]):
        assert score(project, orders, target, "--key", "id", *args)["scored"] == first, turn
        with monkeypatch.context() as patched:
            patched.setattr(Manifest, "state_digest", property(lambda _: "f" * 64))
            assert score(project, orders, target, "--key", "id", *args)["scored"] == second, turn
        add_rows(project, "sqlite", range(4 + 3 * turn, 7 + 3 * turn))
    run(project, "sqlite", "ALTER TABLE orders ADD COLUMN nr VARCHAR(9)", "UPDATE orders SET nr = 'n' || id")
    assert score(project, orders, target, "--key", "nr", *args)["scored"] == 10


OLD = "prediction_id TEXT, key TEXT, model TEXT, request TEXT, scored_at TIMESTAMP"


def test_a_driver_without_transactions_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adbc_driver_postgresql, "__version__", "1.12.1")
    command = ["score", "main", "new.jsonl", "postgresql://localhost:1/shop/scores", "--key", "order", "--json"]
    done = inprocess.run(command, project, os.environ)
    assert (done.returncode, "1.12.1" in json.loads(done.stdout)["error"]["why"]) == (2, True)


@pytest.mark.parametrize(
    ("source", "args", "target", "prepare", "named"),
    [
        ("orders", [], "scores", None, ["--key"]),
        ("orders", ["--key", "nr"], "scores", None, ["'nr'"]),
        ("orders", ["--key", "y"], "scores", None, ["--key y", "row 1", "row 6"]),
        ("orders", ["--key", "id", "--since-last"], "scores", None, ["--growing"]),
        ("orders", ["--key", "id", "--growing", "nr"], "scores", None, ["'nr'"]),
        ("other", ["--key", "id"], "scores", None, ["other"]),
        ("orders", ["--key", "id"], "aifx_requests", None, ["aifx_requests"]),
        ("orders", ["--key", "id"], "taken", "CREATE TABLE taken (key INTEGER)", ["'prediction_id'", "'key'", "taken"]),
        (
            "orders",
            ["--key", "id"],
            "old",
            f"CREATE TABLE old ({OLD}, label REAL)",
            ["'label'", "'probability'"],
        ),
        ("half", ["--key", "id"], "scores", "CREATE TABLE half AS SELECT id, x FROM orders", ["'y'", "half"]),
        (
            "texts",
            ["--key", "id"],
            "scores",
            "CREATE TABLE texts AS SELECT id, note AS x, y FROM orders",
            ["'x'", "row 1"],
        ),
    ],
)
def test_bad_input_writes_nothing(
    project: Path, source: str, args: list[str], target: str, prepare: str | None, named: list[str]
) -> None:
    add_rows(project, "sqlite", range(ROWS))
    if prepare is not None:
        run(project, "sqlite", prepare)
    before = run(project, "sqlite", "SELECT name FROM sqlite_master")
    error = score(project, f"sqlite:///shop.sqlite/{source}", f"sqlite:///shop.sqlite/{target}", *args, code=2)
    for name in named:
        assert name in error["what"] + error["why"] + error["hint"], error
    assert run(project, "sqlite", "SELECT name FROM sqlite_master") == before


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_query_writes_nothing(project: Path, dialect: str) -> None:
    add_rows(project, dialect, range(3))
    for sql in ("DELETE FROM orders", "SELECT * FROM orders) AS q; DELETE FROM orders; SELECT * FROM (SELECT 1"):
        url = f"{dialect}:///shop.{dialect}"
        assert score(project, url, "scores", "--query", sql, "--key", "id", code=2)["what"]
    assert run(project, dialect, "SELECT count(*) FROM orders") == [(3,)]
