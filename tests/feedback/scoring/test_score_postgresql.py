"""`aifx score` of and into PostgreSQL: late commits, concurrent scorers, and bad input."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import inprocess
import pytest
from postgresql_server import PASSWORD, USER, Server, postgresql_server

from aifx.curation.databases.query import parse_database_url
from aifx.data.readers.rows import Row
from aifx.feedback.scoring import database_source, scoring
from aifx.feedback.scoring.connections import connect
from aifx.feedback.scoring.database_target import DatabaseTable
from aifx.feedback.scoring.predictions import keyed, prediction_batch

ROWS = 40


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql_server() as found:
        yield found


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database, with a table `orders`. A commit has some rows."""
    monkeypatch.setattr(scoring, "COMMIT_ROWS", 16)
    monkeypatch.setattr(scoring, "LOOK_ROWS", 8)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    server.run(
        "DROP TABLE IF EXISTS scores, orders, aifx_positions, aifx_requests",
        "CREATE TABLE orders (id bigint PRIMARY KEY, x float8, y numeric(8, 2), at timestamptz DEFAULT now())",
        f"INSERT INTO orders SELECT i, i % 7 - 3, i % 5 - 2 FROM generate_series(1, {ROWS}) AS i",
    )
    return server.url


def score(project: Path, url: str, *args: str, code: int = 0) -> Any:
    command = ["score", "main", f"{url}/orders", f"{url}/scores", "--key", "id", *args, "--json"]
    done = inprocess.run(command, project, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout) if code == 0 else json.loads(done.stdout)["error"]


def add_rows(server: Server, first: int, last: int) -> None:
    server.run(f"INSERT INTO orders SELECT i, i % 7 - 3, i % 5 - 2 FROM generate_series({first}, {last}) AS i")


def scored_keys(server: Server) -> list[int]:
    return [row[0] for row in server.rows("SELECT key::bigint FROM scores ORDER BY 1")]


@contextmanager
def open_transaction(server: Server) -> Iterator[Any]:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(server.url.replace("@", f":{PASSWORD}@")) as connection, connection.cursor() as cursor:
        yield connection, cursor


@pytest.mark.representative("rows are scored once")
def test_a_transaction_that_commits_late_is_not_lost(project: Path, server: Server, url: str) -> None:
    with open_transaction(server) as (late, cursor):
        cursor.execute("INSERT INTO orders VALUES (1000, 1, 1)")
        add_rows(server, 1001, 1005)  # a later transaction, which commits first
        first = score(project, url, "--since-last")
        assert (first["rows"], first["scored"]) == (ROWS + 5, ROWS + 5)
        horizon = first["position"]["horizon"]
        second = score(project, url, "--since-last")  # what later transactions wrote is read again
        assert (second["rows"], second["scored"], second["position"]["horizon"]) == (5, 0, horizon)
        late.commit()
    third = score(project, url, "--since-last")
    assert (third["rows"], third["scored"]) == (6, 1)
    assert third["position"]["horizon"] > horizon
    server.run("UPDATE orders SET x = 9 WHERE id = 7")
    fourth = score(project, url, "--since-last")
    assert (fourth["rows"], fourth["scored"]) == (1, 1)
    assert scored_keys(server) == sorted([*range(1, ROWS + 1), 7, *range(1000, 1006)])
    assert server.rows("SELECT count(DISTINCT prediction_id) FROM scores") == [(ROWS + 7,)]


@pytest.mark.slow
def test_positions_that_cannot_be_used_read_all(
    project: Path, server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(project, url, "--since-last")
    assert score(project, url, "--since-last")["rows"] == 0
    with monkeypatch.context() as patched:
        patched.setattr(database_source, "FARTHEST", 0)  # transactions
        assert score(project, url, "--since-last")["known"] == ROWS
    server.run(  # as after a restore from a copy
        "UPDATE aifx_positions SET entry = replace(entry, '\"timeline\": 1', '\"timeline\": 2')",
    )
    assert score(project, url, "--since-last")["known"] == ROWS
    assert score(project, url, "--since-last")["rows"] == 0


def test_numbers_of_transactions_that_wrapped_around(server: Server) -> None:
    """The comparison of `xmin` is modulo 2**32: seen from this horizon, 3 is newer."""
    condition = database_source.newer_than(2**32 * 3 - 100)
    numbers = "VALUES ('3'::text), ('4294967290'), ('4294967000'), ('2147483000')"
    found = server.rows(f"SELECT {condition} FROM ({numbers}) AS t(xmin)")
    assert [row[0] for row in found] == [True, True, False, True]


def test_scorers_at_the_same_time(project: Path, server: Server, url: str) -> None:
    """Another call commits between the look of this one and its own commit."""
    look, others = scoring.prediction_batch, []

    def slow(*args: Any) -> Any:
        if not others:
            others.append(threading.get_ident())
            others.append(score(project, url))
        return look(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scoring, "prediction_batch", slow)
        outer = score(project, url)
    assert others[1]["scored"] == ROWS
    assert (outer["scored"], outer["known"]) == (0, ROWS)
    assert scored_keys(server) == list(range(1, ROWS + 1))


@pytest.mark.usefixtures("url")
def test_commits_at_the_same_time_take_turns(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit begins while another one, of the same rows, has looked what is there and has not inserted yet."""
    rows = [keyed(Row("", n, "", {"id": n}), "id", "m") for n in range(9)]
    batch = prediction_batch([(row, {"value": 0.5}) for row in rows], "m", None, datetime.now(UTC))
    table = DatabaseTable.of(f"{server.url}/scores")
    with table.open() as first, table.open() as second, ThreadPoolExecutor(1) as pool:
        assert first.add(batch.slice(0, 2), "orders", None, None, "m") == 2
        look, waiting = first._known, list[Future[int]]()

        def looked(ids: Collection[str]) -> set[str]:
            found = look(ids)
            waiting.append(pool.submit(second.add, batch, "orders", None, None, "m"))
            while not server.rows("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                assert not waiting[0].done()
            return found

        monkeypatch.setattr(first, "_known", looked)
        assert first.add(batch, "orders", None, None, "m") == 7
        assert waiting[0].result() == 0
    assert scored_keys(server) == list(range(9))


@pytest.mark.usefixtures("url")
def test_a_server_that_ends_idle_transactions(server: Server) -> None:
    """Some versions of ADBC keep one open while rows are predicted, which can take longer."""
    server.run(f"ALTER ROLE {USER} SET idle_in_transaction_session_timeout = '20ms'")
    try:
        with connect(parse_database_url(server.url), "write") as connection, connection.transaction():
            connection.rows("SELECT 1")
            time.sleep(0.2)
            assert connection.rows("SELECT 1") == [(1,)]
    finally:
        server.run(f"ALTER ROLE {USER} RESET ALL")


@pytest.mark.slow
def test_a_request_goes_on_with_its_count(project: Path, server: Server, url: str) -> None:
    calls: list[int] = []
    look = scoring.prediction_batch

    def broken(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return look(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scoring, "prediction_batch", broken)
        command = ["score", "main", f"{url}/orders", f"{url}/scores", "--key", "id", "--request", "a.1"]
        assert inprocess.run(command, project, os.environ).returncode == 130
    assert len(scored_keys(server)) == 16
    server.run('UPDATE aifx_positions SET entry = replace(entry, \'"model": "\', \'"model": "f\')')
    other = score(project, url, "--request", "a.1", code=2)  # its run has another checkpoint now
    assert "another model" in other["what"]
    server.run('UPDATE aifx_positions SET entry = replace(entry, \'"model": "f\', \'"model": "\')')
    done = score(project, url, "--request", "a.1")
    assert (done["scored"], done["known"]) == (ROWS, 16)
    add_rows(server, 100, 105)
    assert score(project, url, "--request", "a.1") == done | {"is_repeated": True}
    assert score(project, url, "--query", "SELECT * FROM orders", "--request", "a.1", code=2)["what"]


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("statement", "args", "named"),
    [
        ("CREATE TABLE scores (prediction_id text, key bigint)", [], ["'key' is bigint", "text", "'model' is missing"]),
        slow("ALTER TABLE orders DROP COLUMN y", [], ["'y'"]),
        pytest.param(
            "ALTER TABLE orders DROP CONSTRAINT orders_pkey",
            ["--key", "x"],
            ["--key x", "row 1", "row 8"],
            marks=pytest.mark.slow,
        ),
        ("ALTER TABLE orders RENAME TO other", [], ["orders"]),
        ("CREATE TABLE other () INHERITS (orders)", ["--since-last"], ["--growing", "partitions"]),
        ("UPDATE orders SET y = 'NaN' WHERE id = 40", [], ["'y'", "NaN"]),
        ("UPDATE orders SET at = NULL WHERE id = 3", ["--since-last", "--growing", "at"], ["'at'"]),
        pytest.param(
            "ALTER TABLE orders ALTER x TYPE text USING 'a' || x", [], ["'x'", "row 1"], marks=pytest.mark.slow
        ),
    ],
)
def test_bad_input_writes_nothing(
    project: Path, server: Server, url: str, statement: str, args: list[str], named: list[str]
) -> None:
    server.run(statement)
    tables = "SELECT relname FROM pg_class WHERE relname IN ('scores', 'aifx_positions', 'aifx_requests')"
    before = server.rows(tables)
    error = score(project, url, *args, code=2)
    for name in named:
        assert name in error["what"] + error["why"], error
    assert error["hint"]
    assert server.rows(tables) == before
    assert before == [] or server.rows("SELECT count(*) FROM scores") == [(0,)]
    server.run("DROP TABLE IF EXISTS other")


@pytest.mark.slow
def test_a_view_needs_a_column_that_grows(project: Path, server: Server, url: str) -> None:
    server.run("DROP VIEW IF EXISTS seen", "CREATE VIEW seen AS SELECT * FROM orders")
    command = ["score", "main", f"{url}/seen", "scores", "--key", "id", "--since-last", "--json"]
    done = inprocess.run(command, project, os.environ)
    assert (done.returncode, "--growing" in done.stdout) == (2, True)
    for rows in (ROWS, 1):
        done = inprocess.run([*command, "--growing", "at", "--set", "eval.batch_size=8"], project, os.environ)
        found = json.loads(done.stdout)
        assert found["rows"] == ROWS, rows  # all of one transaction have one time
    assert found["known"] == ROWS
    server.run("DROP VIEW seen")
