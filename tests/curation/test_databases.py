"""`aifx data add NAME postgresql://… --query SQL`: every type, one snapshot, no password anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inprocess
import pytest
from adding import environ_of, quarantine_of, rows_of
from postgresql_server import PASSWORD, Server, postgresql_server

from aifx.core.errors import UsageError
from aifx.curation.databases import postgresql
from aifx.curation.databases.query import parse_database_url
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version

MOOD = "CREATE TYPE mood AS ENUM ('sad', 'ok')"
POINT = "CREATE TYPE pair AS (x int, y text)"
TYPES = {
    "12.5::numeric(10,2)": ("decimal128(10, 2)", "12.50"),
    "(2::numeric ^ 200)": ("string", "1606938044258990275541962092341162602522202993782792835301376.0000000000000000"),
    "'NaN'::numeric": ("string", "NaN"),
    "'Infinity'::float8": ("double", "inf"),
    "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid": ("string", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    """'{"b": [1], "a": null}'::jsonb""": ("string", '{"a": null, "b": [1]}'),
    """'{"b":1}'::json""": ("string", '{"b":1}'),
    "ARRAY[1, NULL, 3]": ("list<item: int32>", "[1, None, 3]"),
    "'[5:6]={1,2}'::int8[]": ("list<item: int64>", "[1, 2]"),
    "'{}'::text[]": ("list<item: string>", "[]"),
    "ARRAY['ok'::mood]": ("list<item: string>", "['ok']"),
    "ARRAY[1.50]": ("list<item: string>", "['1.50']"),
    "'2020-01-01 00:00:00+09'::timestamptz": ("timestamp[us, tz=UTC]", "2019-12-31 15:00:00+00:00"),
    "'2020-01-01'::timestamp": ("timestamp[us]", "2020-01-01 00:00:00"),
    "ARRAY['2020-01-01 00:00+09'::timestamptz]": ("list<item: string>", "['2019-12-31 15:00:00+00']"),
    "'24:00'::time": ("string", "24:00:00"),
    "'1 month 2 days'::interval": ("string", "P1M2D"),
    r"'\x00ff'::bytea": ("binary", r"b'\x00\xff'"),
    "'sad'::mood": ("string", "sad"),
    "ROW(1, 'é')::pair": ("string", '{"x":1,"y":"é"}'),
    "12.34::money": ("string", "12.34"),
    "4000000000::oid": ("int64", "4000000000"),
    "'ab'::char(4)": ("string", "ab  "),
    "int4range(1, 5)": ("string", "[1,5)"),
    "'10.0.0.0/8'::inet": ("string", "10.0.0.0/8"),
    "NULL": ("string", "None"),
}
"""SQL, and the Arrow type and text of the value that a version holds."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql_server() as found:
        found.run(MOOD, POINT, "CREATE TABLE t AS SELECT i AS id, 'row ' || i AS text FROM generate_series(1, 3) AS i")
        yield found


def run(folder: Path, server: Server, *args: str, **environ: str) -> Any:
    return inprocess.run(["data", *args, "--root", "datasets"], folder, environ_of(folder) | server.environ | environ)


def add(folder: Path, server: Server, sql: str, *args: str, **environ: str) -> Any:
    return run(folder, server, "add", "d", server.url, "--query", sql, "--license", "MIT", *args, **environ)


def version_of(folder: Path) -> Version:
    return open_catalog(str(folder / "datasets")).open("d")


def test_every_type(tmp_path: Path, server: Server) -> None:
    columns = ", ".join(f"{sql} AS c{index}" for index, sql in enumerate(TYPES))
    done = add(tmp_path, server, f"SELECT {columns}")
    assert done.returncode == 0, done.stderr
    version = version_of(tmp_path)
    row = rows_of(version)[0]
    found = {sql: (version.manifest.columns[f"c{i}"], str(row[f"c{i}"])) for i, sql in enumerate(TYPES)}
    assert found == TYPES


@pytest.mark.slow
def test_dates_beyond_those_of_python(tmp_path: Path, server: Server) -> None:
    done = add(tmp_path, server, "SELECT '20000-01-01'::date AS a, '4713-01-01 BC'::timestamptz AS b")
    assert done.returncode == 0, done.stderr
    sql = "SELECT a::varchar AS a, epoch_us(b) AS b FROM data"
    found = json.loads(run(tmp_path, server, "query", "d", sql, "--json").stdout)
    assert found["rows"] == [["20000-01-01", -210863520000 * 1_000_000]]


def test_rows_that_arrow_cannot_hold(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in quarantine with their key and the reason, and nothing of them comes over the network."""
    monkeypatch.setattr(postgresql, "ROW_BYTES", 1 << 20)
    large = (1 << 20) - 200
    sql = f"""SELECT id, (CASE id WHEN 1 THEN 'NaN' ELSE '2' END)::numeric(9, 2) AS price,
        CASE id WHEN 2 THEN 'infinity' WHEN 3 THEN '294276-01-01' ELSE '2020-01-01' END::timestamptz AS at,
        CASE id WHEN 4 THEN '-infinity' ELSE '2020-01-01' END::date AS day,
        CASE id WHEN 5 THEN '{{{{1}},{{2}}}}' ELSE '{{1}}' END::int[] AS numbers,
        repeat('x', CASE id WHEN 6 THEN {large + 200} ELSE {large} END) AS note
        FROM generate_series(1, 8) AS id"""
    refused = add(tmp_path, server, sql, "--key", "id")
    assert refused.returncode == 1, refused.stderr
    assert "6 of 8 rows" in refused.stderr
    assert add(tmp_path, server, sql, "--key", "id", "--max-bad", "6").returncode == 0
    version = version_of(tmp_path)
    assert [(row["id"], len(row["note"])) for row in rows_of(version)] == [(7, large), (8, large)]
    found = [(row["line"], row["reason"].partition(": ")) for row in quarantine_of(version)]
    assert [(line, place) for line, (place, _, _) in found] == [(id, f"id = {id}") for id in range(1, 7)]
    reasons = ["price", "at", "at", "day", "numbers", "1,048,576 bytes"]
    assert all(expected in reason for expected, (_, (_, _, reason)) in zip(reasons, found, strict=True))


@pytest.mark.slow
def test_a_row_of_1_gb(tmp_path: Path, server: Server) -> None:
    """Its bytes stay in the server. Two such values make a row that the server itself cannot sort."""
    long = "repeat(repeat('x', 100000), 9998)"
    sql = f"SELECT id, CASE WHEN id < 4 THEN {long} END AS a FROM generate_series(2, 4) AS id"
    refused = add(tmp_path, server, sql, "--key", "id")
    assert (refused.returncode, "2 of 3 rows" in refused.stderr) == (1, True), refused.stderr
    assert "id = 2: " in refused.stdout
    assert "134,217,728 bytes" in refused.stdout
    sql = f"SELECT id, {long} AS a, {long} AS b FROM generate_series(1, 2) AS id"
    impossible = add(tmp_path, server, sql, "--key", "id")
    assert (impossible.returncode, "no room" in impossible.stderr) == (2, True), impossible.stderr


def test_the_same_rows_are_nothing_new(tmp_path: Path, server: Server) -> None:
    first = add(tmp_path, server, "SELECT * FROM t", "--key", "id", "--json")
    assert first.returncode == 0, first.stderr
    again = json.loads(add(tmp_path, server, " SELECT * FROM t; ", "--key", "id", "--json").stdout)
    assert again == json.loads(first.stdout) | {"is_new": False, "files_read": 0, "files_unchanged": 1}
    other = json.loads(add(tmp_path, server, "SELECT * FROM t -- odd\n WHERE id > 1", "--json").stdout)
    assert (other["rows"], other["parents"]) == (5, [again["reference"]])
    manifest = version_of(tmp_path).manifest
    assert manifest.kind == "text"
    name = f"postgresql://127.0.0.1:{server.port}/postgres?query="
    assert [source.name.startswith(name) for source in manifest.sources] == [True, True]
    assert {source.reading for source in manifest.sources} >= {"query text=text sql=SELECT * FROM t"}
    row = next(row for row in rows_of(version_of(tmp_path)) if row["text"] == "row 3")
    why = run(tmp_path, server, "why", row["_row"])
    assert row["_source"] in why.stdout, why.stderr
    assert not list((tmp_path / "datasets" / "d").glob(".query-*"))


def test_a_query_writes_nothing(tmp_path: Path, server: Server) -> None:
    server.run("CREATE OR REPLACE FUNCTION careless() RETURNS int AS 'DELETE FROM t; SELECT 1' LANGUAGE sql")
    escape = "SELECT 1 AS a) AS q; DROP TABLE t; SELECT (1"
    for sql in ("DELETE FROM t RETURNING *", "SELECT careless() AS one", escape):
        done = add(tmp_path, server, sql)
        assert (done.returncode, "--query fails" in done.stderr) == (2, True), f"{sql}: {done.stderr}"
    assert server.rows("SELECT count(*) FROM t") == [(3,)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--query", "SELEC 1"], "syntax error"),
        (["--query", "SELECT terminated_at FROM t"], "--query fails"),
        (["--query", "SELECT 1 AS a /*"], "--query fails"),
        (["--query", "SELECT '\udcff' AS a"], "--query is not UTF-8"),
        (["--query", "SELECT 1 AS a, 2 AS a"], "two columns 'a'"),
        (["--query", "SELECT id FROM t", "--key", "ids"], "did you mean 'id'?"),
        (["--query", "SELECT id / 2 AS half FROM t", "--key", "half"], "does not tell rows apart"),
        (["--query", "SELECT NULLIF(id, 2) AS id FROM t", "--key", "id"], "there is none in 1 row or more"),
        (["--query", "SELECT 1.5::float8 AS id", "--key", "id"], "is of type float8"),
        (["--query", " "], "--query is empty"),
        (["--key", "id"], "--key can only be used with --query"),
        ([], "--query 'SELECT * FROM table'"),
    ],
)
def test_mistakes(tmp_path: Path, server: Server, args: list[str], message: str) -> None:
    done = run(tmp_path, server, "add", "d", server.url, "--license", "MIT", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_dry_run(tmp_path: Path, server: Server) -> None:
    done = add(tmp_path, server, "SELECT pg_sleep(1000)::text AS text", "--dry-run", "--json")
    assert (json.loads(done.stdout)["kind"], done.returncode) == ("text", 0), done.stderr
    assert json.loads(done.stdout)["files"][0]["size_bytes"] is None


def test_a_password_is_nowhere(tmp_path: Path, server: Server) -> None:
    """Whether the read succeeds, the login fails, or the password is in the URL, which is refused."""
    own = {"PGPASSWORD": "", "AIFX_DATABASE_PASSWORD": PASSWORD}
    runs = [
        add(tmp_path, server, "SELECT * FROM t", **own),
        add(tmp_path, server, f"SELECT * FROM t WHERE text = 'password={PASSWORD}'", **own),
        add(tmp_path, server, "SELECT 1 / 0 AS a", **own),
        add(tmp_path, server, f"SELECT {PASSWORD.replace('-', '_')} FROM t", **own),
    ]
    for url in (
        server.url.replace("factory", "nobody"),
        server.url.replace("@", f":{PASSWORD}@"),
        f"{server.url}?password={PASSWORD}",
        server.url.replace("127.0.0.1", f"{PASSWORD}.invalid"),
        f"postgresql://x:{PASSWORD}@[bad/db",
    ):
        command = ["add", "d", url, "--query", "SELECT 1 AS a", "--license", "MIT"]
        runs.append(run(tmp_path, server, *command, **own))
        assert runs[-1].returncode == 2
    wrong = add(tmp_path, server, "SELECT 1 AS a", PGPASSWORD="", AIFX_DATABASE_PASSWORD="other")
    assert "authentication failed" in wrong.stderr
    assert "AIFX_DATABASE_PASSWORD" in wrong.stderr
    runs.append(wrong)
    assert runs[0].returncode == 0, runs[0].stderr
    printed = "".join(one.stdout + one.stderr for one in runs)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert PASSWORD not in printed
    assert "factory" not in printed
    assert "nobody" not in printed
    assert not [data for data in written if PASSWORD.encode() in data]
    assert not [data for data in written if b"factory" in data]


def test_names_of_databases() -> None:
    names = {
        "postgres://me@db.example/shop?sslmode=require": "postgresql://db.example:5432/shop",
        "postgresql:///shop?host=/run/postgresql": "postgresql://localhost:5432/shop",
        "postgresql://[::1]:99/shop": "postgresql://[::1]:99/shop",
        "mysql+pymysql://me@db/shop": "mysql://db:3306/shop",
        "sqlite:////data/a.db": "sqlite:////data/a.db",
    }
    assert {url: parse_database_url(url).name for url in names} == names
    with pytest.raises(UsageError, match="names no database"):
        parse_database_url("postgresql://db")
