"""`aifx data push`: the rows of a version in a table, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inprocess
import pyarrow as pa
import pytest
from adding import environ_of, rows_of
from postgresql_server import PASSWORD, Server, postgresql_server
from pyarrow import parquet

from aifx.curation.databases import push
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.lineage import read_lineage
from aifx.data.versions.manifest import LINEAGE

QUERY = """SELECT id, (id * 1.25)::numeric(9, 2) AS price, id % 2 = 0 AS even, ('row ' || id)::text AS note,
    ARRAY[id, NULL] AS numbers, now()::date AS day, to_timestamp(id) AS at, id::float4 AS share,
    md5(id::text)::uuid AS uid, CASE id WHEN 3 THEN NULL ELSE 'x'::bytea END AS raw, id::int2 AS small
    FROM generate_series(1, 5) AS id"""
KILLED = """
import os, signal, sys
from aifx.commands.main import run
from aifx.curation.databases import push
batches = push._batches
push.BATCH_ROWS = 2
def killing(*args):
    for index, batch in enumerate(batches(*args)):
        yield batch
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
push._batches = killing
run(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql_server() as found:
        found.run("CREATE SCHEMA sales")
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """With a data set `d` of five rows from the server."""
    folder = tmp_path_factory.mktemp("project")
    added = run(folder, server, "add", "d", server.url, "--query", QUERY, "--key", "id", "--license", "MIT")
    assert added.returncode == 0, added.stderr
    return folder


def environ(folder: Path, server: Server) -> dict[str, str]:
    return environ_of(folder) | server.environ


def run(folder: Path, server: Server, *args: str) -> Any:
    return inprocess.run(["data", *args, "--root", "datasets"], folder, environ(folder, server))


def staging_tables(server: Server) -> list[tuple[Any, ...]]:
    return server.rows("SELECT relname::text FROM pg_class WHERE relname LIKE 'aifx%'")


def test_there_and_back(folder: Path, server: Server) -> None:
    pushed = run(folder, server, "push", "d", f"{server.url}/sales.back", "--json")
    assert pushed.returncode == 0, pushed.stderr
    found = json.loads(pushed.stdout)
    assert (found["rows"], found["replaced_rows"], found["is_written"]) == (5, None, True)
    assert found["table"] == f"postgresql://127.0.0.1:{server.port}/postgres/sales.back"
    types = {column["name"]: column["type"] for column in found["columns"]}
    assert (types["price"], types["uid"], types["at"]) == ("numeric(9, 2)", "text", "timestamptz")
    sql = "SELECT * FROM sales.back"
    again = run(folder, server, "add", "e", server.url, "--query", sql, "--key", "id", "--license", "MIT")
    assert again.returncode == 0, again.stderr
    catalog = open_catalog(str(folder / "datasets"))
    first, second = (
        [{k: v for k, v in row.items() if k[0] != "_"} for row in rows_of(catalog.open(name))] for name in "de"
    )
    assert first == second
    assert catalog.open("d").manifest.columns == catalog.open("e").manifest.columns
    event = next(
        event
        for event in read_lineage(catalog, catalog.manifest("d").whole_reference)
        if event["job"]["name"] == "data.push"
    )
    namespace = f"postgres://127.0.0.1:{server.port}"
    assert event["outputs"] == [{"namespace": namespace, "name": "postgres.sales.back"}]
    assert f"push: {namespace}/postgres.sales.back\n" in run(folder, server, "lineage", "d").stdout
    assert all(PASSWORD not in path.read_text() for path in (folder / "datasets" / LINEAGE).rglob("*.json"))
    assert not staging_tables(server)


def test_a_table_that_is_there(folder: Path, server: Server) -> None:
    """Nothing is written without --yes; with it, rows are replaced and the table keeps its own types and index."""
    server.run("DROP TABLE IF EXISTS old", "CREATE TABLE old (uid uuid PRIMARY KEY, id bigint, added text DEFAULT 'x')")
    server.run("INSERT INTO old VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 7)")
    command = ["push", "d", f"{server.url}/old"]
    for options, why in (
        ([], "--yes replaces its rows"),
        (["--yes"], "has no column 'price'"),
        (["--yes", "--columns", "ids"], "did you mean 'id'?"),
    ):
        refused = run(folder, server, *command, *options)
        assert (refused.returncode, why in refused.stderr) == (2, True), refused.stderr
    looked = run(folder, server, *command, "--columns", "id,uid", "--dry-run", "--json")
    found = json.loads(looked.stdout)
    assert (found["replaced_rows"], found["is_written"]) == (1, False), looked.stderr
    assert server.rows("SELECT id FROM old") == [(7,)]
    assert run(folder, server, *command, "--columns", "id,uid", "--yes").returncode == 0
    expected = [(id, "x") for id in range(1, 6)]
    assert server.rows("SELECT id, added FROM old WHERE uid = md5(id::text)::uuid ORDER BY id") == expected
    server.run(
        "CREATE FUNCTION half() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF NEW.id > 3 THEN RETURN NULL; END IF; RETURN NEW; END'",
        "CREATE TRIGGER half BEFORE INSERT ON old FOR EACH ROW EXECUTE FUNCTION half()",
    )
    fewer = run(folder, server, *command, "--columns", "id,uid", "--yes")
    assert (fewer.returncode, "3 rows" in fewer.stderr) == (2, True), fewer.stderr
    server.run(
        "CREATE OR REPLACE FUNCTION half() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.id := abs(NEW.id - 3); RETURN NEW; END'",
    )
    other = run(folder, server, *command, "--columns", "id,uid", "--yes")
    assert (other.returncode, '"old" changes rows' in other.stderr) == (2, True), other.stderr
    assert server.rows("SELECT count(*) FROM old") == [(5,)]
    assert not staging_tables(server)


def test_a_text_that_is_too_long_for_the_table(folder: Path, server: Server) -> None:
    """PostgreSQL cuts what is cast to varchar(3)."""
    server.run("CREATE TABLE short (id smallint, note varchar(3))", "CREATE TABLE padded (id float4, note char(9))")
    refused = run(folder, server, "push", "d", f"{server.url}/short", "--columns", "id,note", "--yes")
    assert (refused.returncode, "too long" in refused.stderr) == (2, True), refused.stderr
    assert server.rows("SELECT count(*) FROM short") == [(0,)]
    done = run(folder, server, "push", "d", f"{server.url}/padded", "--columns", "id,note", "--yes")
    assert done.returncode == 0, done.stderr
    assert server.rows("SELECT note::text FROM padded WHERE id = 2") == [("row 2",)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("DELETE FROM {} WHERE id = 2", "it has 4 rows instead of 5"),
        ("UPDATE {} SET day = NULL WHERE id = 2", "column 'day' has 4 values instead of 5"),
        ("UPDATE {} SET id = 9 WHERE id = 2", "the sum of column 'id' is 22 instead of 15"),
        ("UPDATE {} SET note = 'row' WHERE id = 2", "the sum of column 'note' is 23 instead of 25"),
    ],
)
def test_rows_that_arrive_otherwise(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch, change: str, why: str
) -> None:
    check = push.SentRows.check

    def changed(self: push.SentRows, cursor: Any, table: str) -> None:
        cursor.execute(change.format(table))
        check(self, cursor, table)

    monkeypatch.setattr(push.SentRows, "check", changed)
    done = run(folder, server, "push", "d", f"{server.url}/otherwise")
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    assert server.rows("SELECT to_regclass('otherwise')::text") == [(None,)]


def test_a_table_without_schema_is_in_the_first_of_the_search_path(folder: Path, server: Server) -> None:
    pushed = run(folder, server, "push", "d", f"{server.url}/first?options=-csearch_path%3Dsales")
    assert pushed.returncode == 0, pushed.stderr
    assert server.rows("SELECT count(*) FROM sales.first") == [(5,)]
    assert "/postgres.sales.first\n" in run(folder, server, "lineage", "d").stdout


def test_types_without_a_column_of_postgresql(tmp_path: Path, server: Server) -> None:
    table = pa.table(
        {
            "a": pa.array([{"x": 1, "y": ["é"]}, None]),
            "b": pa.array([2**64 - 1, 1], pa.uint64()),
            "c": pa.array([[{"x": 1}], []]),
            "d": pa.array(["one", None]).dictionary_encode(),
            "e": pa.array([1, 2], pa.uint8()),
            "f": pa.array([[1.5], None], pa.list_(pa.float32())),
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    assert run(tmp_path, server, "add", "t", "t.parquet", "--kind", "table", "--license", "MIT").returncode == 0
    pushed = run(tmp_path, server, "push", "t", f"{server.url}/odd%20%22name")
    assert pushed.returncode == 0, pushed.stderr
    assert server.rows('SELECT a, b::text, c, d, e, f::text FROM "odd ""name" ORDER BY e') == [
        ('{"x": 1, "y": ["é"]}', str(2**64 - 1), '[{"x": 1}]', "one", 1, "{1.5}"),
        (None, "1", "[]", None, 2, None),
    ]


def test_tables_that_refuse_rows(folder: Path, server: Server) -> None:
    """The error is of the data, not of the machine: to run the same command again is of no use."""
    server.run(
        "CREATE SCHEMA odd",
        "CREATE TABLE odd.parent (id bigint, note text)",
        "CREATE TABLE odd.child () INHERITS (odd.parent)",
        "INSERT INTO odd.child VALUES (7, 'kept')",
        "CREATE TABLE odd.needs (id bigint, note text, must int NOT NULL)",
        "CREATE TABLE odd.few (id bigint CHECK (id < 3), note text)",
        "CREATE TABLE odd.parts (id bigint, note text) PARTITION BY RANGE (id)",
        "CREATE TABLE odd.part PARTITION OF odd.parts FOR VALUES FROM (0) TO (3)",
        "CREATE FUNCTION odd.no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not %'', NEW.id; END'",
        "CREATE TABLE odd.guarded (id bigint, note text)",
        "CREATE TRIGGER no BEFORE INSERT ON odd.guarded FOR EACH ROW EXECUTE FUNCTION odd.no()",
        "INSERT INTO odd.parts VALUES (1, 'kept')",
    )
    for table, why in {
        "parent": "inherit from",
        "needs": "the table refuses a row\n  null value",
        "few": "the table refuses a row\n  new row",
        "parts": "the table refuses a row\n  no partition",
        "guarded": "the table refuses a row\n  not 1",
        "x" * 64: "PostgreSQL cuts names after 63 bytes",
    }.items():
        done = run(folder, server, "push", "d", f"{server.url}/odd.{table}", "--columns", "id,note", "--yes")
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
        assert "again" not in done.stderr
    assert server.rows("SELECT count(*) FROM odd.child") == server.rows("SELECT count(*) FROM odd.parts") == [(1,)]
    server.run(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
    done = run(folder, server, "push", "d", f"{server.url.replace('factory', 'reader')}/odd.few", "--yes")
    assert (done.returncode, "GRANT" in done.stderr) == (2, True), done.stderr


def test_rows_that_come_while_others_are_copied(folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.run("CREATE TABLE busy AS SELECT 1::bigint AS id")
    check = push.SentRows.check

    def late(self: push.SentRows, cursor: Any, table: str) -> None:
        server.run("INSERT INTO busy VALUES (2), (3)")
        check(self, cursor, table)

    monkeypatch.setattr(push.SentRows, "check", late)
    done = run(folder, server, "push", "d", f"{server.url}/busy", "--columns", "id", "--yes", "--json")
    assert json.loads(done.stdout)["replaced_rows"] == 3, done.stderr


@pytest.mark.slow
def test_values_without_a_type_of_postgresql(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table(
        {
            "at": pa.array([1, 1999], pa.timestamp("ns")),
            "took": pa.array([1, 2], pa.duration("s")),
            "half": pa.array([1, 2], pa.float16()),
            "large": pa.array([1, 2], pa.decimal256(60, 2)),
            "c" * 64: [1, 2],
            "nested": [{"x": float("nan")}, {"x": 1.0}],
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    added = run(tmp_path, server, "add", "t", "t.parquet", "--kind", "table", "--license", "MIT")
    assert added.returncode == 0, added.stderr
    for column, why in {"at": "column 'at' of type timestamp[ns]", "c" * 64: "63 bytes"}.items():
        done = run(tmp_path, server, "push", "t", f"{server.url}/unfit", "--columns", column)
        assert (done.returncode, why in done.stderr, "again" in done.stderr) == (2, True, False), done.stderr
    done = run(tmp_path, server, "push", "t", f"{server.url}/fit", "--columns", "nested,half,large,took")
    assert done.returncode == 0, done.stderr
    assert server.rows("SELECT nested::jsonb->>'x', half FROM fit ORDER BY half") == [(None, 1.0), ("1.0", 2.0)]

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(push, "_stored", interrupted)
    done = run(tmp_path, server, "push", "t", f"{server.url}/never", "--columns", "half")
    assert (done.returncode, "interrupted" in done.stderr) == (130, True), done.stderr


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://127.0.0.1/", "names no"),
        ("postgresql://127.0.0.1/db", "names no"),
        ("postgresql://127.0.0.1:1/db/t", "onnection refused"),
        (f"postgresql://me:{PASSWORD}@127.0.0.1/db/t", "AIFX_DATABASE_PASSWORD"),
        ("mysql://127.0.0.1/db/t", "cannot push to mysql"),
    ],
)
def test_mistakes(folder: Path, server: Server, url: str, message: str) -> None:
    done = run(folder, server, "push", "d", url)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert PASSWORD not in done.stderr


@pytest.mark.slow
def test_a_schema_or_database_that_does_not_exist(folder: Path, server: Server) -> None:
    for url in (f"{server.url}/nowhere.t", f"{server.url.rpartition('/')[0]}/nowhere/t"):
        done = run(folder, server, "push", "d", url)
        assert (done.returncode, '"nowhere" does not exist' in done.stderr) == (2, True), done.stderr
        assert "hint: " in done.stderr


def test_a_request_is_done_once(folder: Path, server: Server) -> None:
    command = ["push", "d", f"{server.url}/sales.once", "--request", "r1"]
    looked = json.loads(run(folder, server, *command, "--dry-run", "--json").stdout)
    assert (looked["is_written"], looked["is_repeated"]) == (False, False)
    first = json.loads(run(folder, server, *command, "--json").stdout)
    assert (first["request"], first["is_repeated"], first["rows"]) == ("r1", False, 5)
    server.run("DELETE FROM sales.once WHERE id > 1")
    assert json.loads(run(folder, server, *command, "--json").stdout) == first | {"is_repeated": True}
    assert "as an earlier call with this request id reported" in run(folder, server, *command).stdout
    assert server.rows("SELECT id FROM sales.once") == [(1,)]
    refused = run(folder, server, *command[:-1], "r2")
    assert (refused.returncode, "--yes replaces its rows" in refused.stderr) == (2, True)
    other = run(folder, server, "push", "d", f"{server.url}/sales.other", "--request", "r1")
    assert (other.returncode, "belongs to another act" in other.stderr) == (2, True)
    assert run(folder, server, *command[:-1], "r2", "--yes").returncode == 0
    assert server.rows("SELECT request FROM sales.aifx_requests ORDER BY 1") == [("r1",), ("r2",)]


@pytest.mark.parametrize(
    "last",
    [
        pytest.param("4", marks=pytest.mark.representative("a killed request to a database")),
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_a_request_that_is_killed_is_done_once(
    folder: Path, server: Server, last: str, record_property: Callable[[str, object], None]
) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    command = [sys.executable, str(here / "killed_push.py"), server.url, last]
    environment = environ(folder, server) | {"PYTHONPATH": paths}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    record_property("kills", int(done.stdout))
    assert int(done.stdout) >= 4


@pytest.mark.slow
def test_killed_midway(folder: Path, server: Server) -> None:
    server.run("DROP TABLE IF EXISTS kept", "CREATE TABLE kept AS SELECT 1 AS id, 'old' AS note")
    options = ["--root", "datasets", "--columns", "id,note", "--yes"]
    command = [sys.executable, "-c", KILLED, "data", "push", "d", f"{server.url}/kept", *options]
    killed = subprocess.run(command, cwd=folder, env=environ(folder, server), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert server.rows("SELECT id, note FROM kept") == [(1, "old")]
    assert not staging_tables(server)
    assert run(folder, server, "push", "d", f"{server.url}/kept", "--columns", "id,note", "--yes").returncode == 0
    assert server.rows("SELECT count(*), max(id) FROM kept") == [(5, 5)]
