"""`aifx data add` from SQLite, DuckDB and other databases that SQLAlchemy knows."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import duckdb
import inprocess
import pytest
from adding import environ_of, rows_of

from aifx.data.versions.catalog import open_catalog

ROWS = [(1, None, "é", b"\x00"), (2, 2.5, "it's 12:30", None), (3, 3.0, "", b"x")]


def add(folder: Path, url: str, *args: str) -> Any:
    environ = environ_of(folder)
    environ["AIFX_DATABASE_PASSWORD"] = "s3cr3t-Pa55"
    return inprocess.run(["data", "add", "d", url, "--license", "MIT", "--root", "datasets", *args], folder, environ)


@pytest.mark.parametrize("dialect", ["sqlite", "duckdb"])
def test_rows_of_a_file(tmp_path: Path, dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the first rows have nulls, and later ones a wider type."""
    monkeypatch.setattr("aifx.curation.databases.query.PIECE_ROWS", 1)
    path = tmp_path / "a.db"
    connection: Any = sqlite3.connect(path) if dialect == "sqlite" else duckdb.connect(str(path))
    connection.execute("CREATE TABLE t (id BIGINT, share DOUBLE, note VARCHAR, raw BLOB)")
    connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", ROWS)
    connection.commit()
    connection.close()
    command = [f"{dialect}:///{path}", "--query", "SELECT * FROM t WHERE note <> ':no' ORDER BY id;"]
    done = add(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    version = open_catalog(str(tmp_path / "datasets")).open("d")
    columns = list(version.manifest.columns.items())[2:]
    assert columns == [("id", "int64"), ("share", "double"), ("note", "string"), ("raw", "binary")]
    assert [tuple(row.values())[2:] for row in rows_of(version)] == ROWS
    assert "which was there already" in add(tmp_path, *command).stdout
    empty = add(tmp_path, f"{dialect}:///{path}", "--query", "SELECT id FROM t WHERE id > 9")
    assert (empty.returncode, "3 rows" in empty.stdout) == (0, True), empty.stderr


@pytest.mark.parametrize(
    ("url", "args", "message"),
    [
        ("sqlite:///missing.db", [], "there is no database missing.db"),
        ("sqlite:///a.db", ["--key", "id"], "--key can only be used with PostgreSQL"),
        ("sqlite:///a.db", ["--query", "SELEC 1"], "syntax error"),
        ("sqlite:///a.db", ["--query", "DELETE FROM t"], "readonly database"),
        ("sqlite:///a.db", ["--query", "SELECT 1 AS a UNION ALL SELECT 'x'"], "several types"),
        ("mysql+pymysql://me@127.0.0.1:1/shop", [], "pip install pymysql"),
        ("mysql+pymysql://me@127.0.0.1:1/shop", ["--query", "/* SELECT */ DROP TABLE t"], "does not begin with SELECT"),
        ("nothing://me@127.0.0.1/shop", [], "has no dialect"),
        ("sqlite+x://me:s3cr3t-Pa55@127.0.0.1/shop", [], "AIFX_DATABASE_PASSWORD"),
    ],
)
def test_mistakes(tmp_path: Path, url: str, args: list[str], message: str) -> None:
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("CREATE TABLE t AS SELECT 1 AS id")
    connection.close()
    done = add(tmp_path, url, *(["--query", "SELECT 1 AS id"] if "--query" not in args else []), *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "s3cr3t-Pa55" not in done.stderr
    assert sqlite3.connect(tmp_path / "a.db").execute("SELECT id FROM t").fetchall() == [(1,)]


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["sqlite", "duckdb"])
def test_a_query_writes_nothing(tmp_path: Path, dialect: str) -> None:
    path = tmp_path / "a.db"
    connection: Any = sqlite3.connect(path) if dialect == "sqlite" else duckdb.connect(str(path))
    connection.execute("CREATE TABLE t AS SELECT 1 AS id")
    connection.close()
    for sql in (
        "SELECT 1 AS a; DELETE FROM t; SELECT 2 AS b",
        "DELETE FROM t",
        "DELETE FROM t RETURNING *",
        "UPDATE t SET id = 2 RETURNING id",
        "DROP TABLE t",
        "CREATE TABLE u (a INT)",
        "COPY t TO 'other'",
        "WITH c AS (COPY t TO 'other') SELECT * FROM c",
        "ATTACH 'other' AS o",
        "VACUUM INTO 'other'",
        "EXPORT DATABASE 'other'",
        "COMMIT",
        "PRAGMA user_version = 7",
    ):
        done = add(tmp_path, f"{dialect}:///{path}", "--query", sql)
        assert (done.returncode, done.stdout) == (2, ""), sql
    assert not (tmp_path / "other").exists()
    connection = sqlite3.connect(path) if dialect == "sqlite" else duckdb.connect(str(path))
    assert connection.execute("SELECT id FROM t").fetchall() == [(1,)]
    connection.close()
    done = add(tmp_path, f"{dialect}:///{path}", "--query", "WITH c AS (SELECT id FROM t) SELECT * FROM c -- all")
    assert done.returncode == 0, done.stderr


def test_numbers_that_no_type_holds_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.curation.databases.query.PIECE_ROWS", 1)
    sqlite3.connect(tmp_path / "a.db").close()
    sql = "SELECT 1152921504606846977 AS a UNION ALL SELECT 1.5"
    done = add(tmp_path, "sqlite:///a.db", "--query", sql)
    assert (done.returncode, "column 'a'" in done.stderr) == (2, True)
