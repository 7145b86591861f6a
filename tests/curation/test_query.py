"""aifx data query: SQL that reads the rows of a version, and nothing else."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import inprocess
import pytest
from pyarrow import parquet
from toy_steps import Rows

from aifx.core.errors import DataError, UsageError
from aifx.curation.execution import execute
from aifx.curation.query import QueryResult, file_parts, query_rows, query_to_file, selected_rows
from aifx.curation.step import Limits
from aifx.data.row_writers import unescape_formula
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import read_shard

MEMORY = 256 << 20


def rows_of(version: Version, sql: str, most: int, memory_bytes: int = MEMORY) -> QueryResult:
    """The result of a query that runs in this process."""
    (found,) = selected_rows(version, sql, most, memory_bytes)
    return found


def file_of(version: Version, sql: str, output: Path) -> int:
    """Write the file of a query that runs in this process. Returns its rows."""
    parts = list(file_parts(version, sql, output.suffix[1:], MEMORY))
    output.write_bytes(b"".join(part for _, part in parts))
    return sum(rows for rows, _ in parts)


@pytest.fixture
def version(tmp_path: Path) -> Version:
    catalog = open_catalog(str(tmp_path / "data'sets"))
    return execute(Rows((), (("a cat", "a dog"), ("an ox",))), "pets", catalog, Limits(1 << 30, 1)).version


@pytest.mark.slow
def test_a_query_in_a_process_of_its_own(version: Version) -> None:
    sql = "SELECT DATE '2026-01-02' AS day, 1.5::DECIMAL(4, 2) AS n, [1, NULL] AS list, 'x'::BLOB AS raw"
    assert query_rows(version, sql, 9, MEMORY) == rows_of(version, sql, 9)
    with pytest.raises(UsageError, match="the SQL"):
        query_rows(version, "SELECT nothing FROM data", 9, MEMORY)


def test_rows_of_both_tables(version: Version) -> None:
    found = rows_of(version, "SELECT text, length(text) AS n FROM data ORDER BY n, text", 2)
    assert found.columns == {"text": "VARCHAR", "n": "BIGINT"}
    assert (found.rows, found.is_cut) == ((("a cat", 5), ("a dog", 5)), True)
    assert rows_of(version, "FROM rows SELECT count(*)", 9).rows == ((3,),)
    for sql, rows in {"DESCRIBE data": 3, "SUMMARIZE data;": 3, "VALUES (1)": 1, "FROM data -- all": 3}.items():
        assert len(rows_of(version, sql, 9).rows) == rows
    assert rows_of(version, "SELECT 'x'::BLOB FROM data LIMIT 1", 9).rows == (("<1 bytes>",),)


def test_dates_that_python_does_not_have(version: Version, tmp_path: Path) -> None:
    sql = "SELECT (DATE '0001-01-01' - 20000)::DATE AS day, TIMESTAMP '12000-01-02 03:04:05' AS at, 1 AS n"
    file_of(version, sql, tmp_path / "out.jsonl")
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (row["day"], row["at"][:19], row["n"]) == ("-0054-03-31", "12000-01-02 03:04:0", 1)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '{beside}'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
        "COPY data TO '{beside}'",
        "COPY (SELECT 1 AS a) TO '{shard}'",
        "EXPLAIN ANALYZE COPY (SELECT 1 AS a) TO '{shard}' (FORMAT parquet, USE_TMP_FILE false)",
        "WITH t AS (COPY (SELECT 1 AS a) TO '{shard}' (FORMAT parquet, USE_TMP_FILE false)) SELECT * FROM t",
        "ATTACH '{beside}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 1",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW data",
        "SELECT 1; SELECT 2",
        "SELECT * FROM version",
        "SELECT nothing FROM data",
        "SELEC 1",
        "",
        "SELECT text::INT FROM data",
    ],
)
def test_what_is_refused(version: Version, tmp_path: Path, sql: str) -> None:
    beside = tmp_path / "beside.csv"
    beside.write_text("a\n1\n")
    before = version.shards[0].read_bytes()
    with pytest.raises(UsageError, match="the SQL"):
        rows_of(version, sql.format(beside=beside, shard=str(version.shards[0]).replace("'", "''")), 9)
    assert version.shards[0].read_bytes() == before
    assert beside.read_text() == "a\n1\n"


def test_a_long_query_prints_nothing() -> None:
    """DuckDB draws a bar on stdout, beside the document of --json, in processes without a script, as aifx starts."""
    program = """if True:
        from aifx.data.versions.sql import open_tables
        with open_tables({}) as connection:
            print(connection.execute("SELECT current_setting('enable_progress_bar')").fetchone())"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(False,)\n"


@pytest.mark.slow
def test_more_than_the_memory_goes_to_the_disk(version: Version) -> None:
    rows = "SELECT DISTINCT range AS n, repeat('x', 50) || range AS t FROM range(3_000_000)"
    sql = f"SELECT sum(n) FROM ({rows})"
    assert rows_of(version, sql, 9).rows == ((3_000_000 * 2_999_999 // 2,),)


def test_files(version: Version, tmp_path: Path) -> None:
    sql = "SELECT _row, text, [1, 2] AS list, encode('é') AS raw FROM data ORDER BY _row"
    for suffix in ("csv", "jsonl", "parquet"):
        output = tmp_path / f"rows.{suffix}"
        assert file_of(version, sql, output) == 3
    records = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert records[0] == {"_row": "s0.txt-0", "text": "a cat", "list": [1, 2], "raw": "w6k="}
    with open(tmp_path / "rows.csv", newline="") as file:
        assert list(csv.DictReader(file))[2]["text"] == "an ox"
    assert parquet.read_table(tmp_path / "rows.parquet").column("raw").to_pylist() == ["é".encode()] * 3
    assert query_to_file(version, sql, tmp_path / "other.parquet", MEMORY).rows == 3
    assert (tmp_path / "other.parquet").read_bytes() == (tmp_path / "rows.parquet").read_bytes()


def test_a_value_far_into_the_rows_that_fails(version: Version, tmp_path: Path) -> None:
    """Arrow's stream carries DuckDB's errors as OSError, which were reported as bugs of aifx."""
    sql = "SELECT CASE WHEN range < 50000 THEN 1 ELSE ('a' || range)::INT END FROM range(60000)"
    with pytest.raises(UsageError, match="the SQL cannot be run"):
        query_to_file(version, sql, tmp_path / "bad.csv", MEMORY)
    assert not (tmp_path / "bad.csv").exists()


def test_formulas_in_csv(version: Version, tmp_path: Path) -> None:
    """A spreadsheet takes no cell for a formula: none of a text, of a nested one, and no column's name."""
    texts = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "'=1", "plain", "-5", "+2.5", "a=b"]
    values = ", ".join(f"('{text.replace(chr(39), chr(39) * 2)}')" for text in texts)
    sql = f"""SELECT t AS "=name", {{'in': t}} AS x FROM (VALUES {values}) v(t)"""
    assert file_of(version, sql, tmp_path / "rows.csv") == len(texts)
    with open(tmp_path / "rows.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["'=name", "x.in"]
    expected = [text if text in ("plain", "-5", "+2.5", "a=b") else f"'{text}" for text in texts]
    assert rows == [[cell, cell] for cell in expected]
    assert [unescape_formula(cell) for cell, _ in rows] == texts
    file_of(version, sql, tmp_path / "rows.jsonl")
    assert [json.loads(line)["=name"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == texts


def test_the_command(version: Version, tmp_path: Path) -> None:
    root = ["--root", str(version.path.parents[1])]
    found = inprocess.run(["data", "query", "pets", "SELECT text FROM data", "--rows", "1", *root], tmp_path, {})
    assert found.stdout.splitlines() == ["text", "a cat"]
    assert "more than 1 row:" in found.stderr
    found = inprocess.run(["data", "query", "pets", "SELECT x FROM data", *root], tmp_path, {})
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 3
    for name in ("rows.txt", "no/rows.csv"):
        args = ["data", "query", "pets", "SELECT 1", "--output", name, *root]
        assert inprocess.run(args, tmp_path, {}).returncode == 2
    everything = ["SELECT * FROM data", "--output", "o.csv", "--json"]
    assert json.loads(inprocess.run(["data", "query", "pets", *everything, *root], tmp_path, {}).stdout)["rows"] == 3


def test_damaged_rows(version: Version, tmp_path: Path) -> None:
    """Rows that cannot be read are no mistake of the user and no bug."""
    version.shards[0].write_bytes(b"PAR1" + bytes(200) + b"PAR1")
    found = inprocess.run(["data", "why", "s0.txt-0", "--root", str(version.path.parents[1])], tmp_path, {})
    assert found.returncode == 2, found.stderr
    assert len(found.stderr.splitlines()) == 3


def test_a_missing_shard_is_named(version: Version) -> None:
    version.shards[0].unlink()
    for read in (lambda: rows_of(version, "FROM data", 9), lambda: read_shard(version.shards[0])):
        with pytest.raises(DataError, match=f"{version.shards[0]} is missing"):
            read()


def test_a_version_without_columns(version: Version) -> None:
    empty = replace(version, manifest=replace(version.manifest, columns={}, shards=()))
    assert rows_of(empty, "SELECT _row, _source FROM data", 9).rows == ()  # as `aifx data why` selects
    step = replace(version.manifest.step, name="mix")
    mix = replace(empty, manifest=replace(empty.manifest, step=step, parents=("a@123456789abc",)))
    with pytest.raises(UsageError, match="is a mix"):
        query_rows(mix, "FROM data", 9, MEMORY)
