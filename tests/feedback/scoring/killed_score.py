"""`aifx score --request` that is killed: at each statement and commit, or at random, as its server is.

    python killed_score.py places LAST      at the last places of each database and a folder, or "all"
    python killed_score.py random COUNT     rounds with a random kill of the call, of its backend, or of the server

The working directory has a project with the run "main". After each kill the same command comes again, while rows are
added that are committed late. Each row is scored once. The program prints the number of kills.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import inprocess
from faulty_files import forked, killed
from killed_places import kill_at_places, killed_at_calls
from postgresql_server import PASSWORD, Server, postgresql_server
from pyarrow import parquet

import aifx.feedback.scoring.database_source
import aifx.feedback.scoring.database_target
import aifx.feedback.scoring.file_target
import aifx.feedback.scoring.scoring as scoring
import aifx.verbs.scoring  # noqa: F401  # once, instead of in each process
from aifx.feedback.scoring.connections import (
    Connection,
    DuckdbConnection,
    PostgresConnection,
    SqliteConnection,
)

ROWS = 24
COMMIT_ROWS = 10


def ask(url: str, *args: str, target: str = "") -> int:
    scoring.COMMIT_ROWS, scoring.LOOK_ROWS = COMMIT_ROWS, 8
    command = ["score", "main", f"{url}/orders", target or f"{url}/scores", "--key", "id", *args, "--json"]
    done = inprocess.run(command, Path.cwd(), os.environ)
    if done.returncode == 0:
        Path("answer.json").write_text(done.stdout)
    elif done.returncode != 2 or "again" not in json.loads(done.stdout)["error"]["hint"]:
        raise AssertionError(done.stdout + done.stderr)
    return done.returncode


def answer() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path("answer.json").read_text())
    return document


def calls_of(kind: type[Connection]) -> list[tuple[type[Connection], str]]:
    """Each statement and commit."""
    return [(kind, name) for name in ("rows", "insert", "_commit")]


def check(rows: Callable[[str], list[tuple[Any, ...]]], url: str, *args: str, target: str = "") -> None:
    """Ask again: each row is scored once, and the answer is that of a call that nothing disturbed."""
    assert ask(url, *args, target=target) == 0
    first = answer()
    assert first["scored"] == ROWS
    assert sorted(int(row[0]) for row in rows("SELECT key FROM scores")) == list(range(ROWS))
    assert rows("SELECT count(*) FROM aifx_requests") == [(1,)]
    assert ask(url, *args, target=target) == 0
    assert answer() == first | {"is_repeated": True}


def file_rows(connect: Callable[[str], Any], path: str, *statements: str) -> list[tuple[Any, ...]]:
    """The rows of the last statement for SQLite or DuckDB."""
    connection = connect(path)
    for statement in statements:
        found: list[tuple[Any, ...]] = connection.execute(statement).fetchall()
    connection.commit()
    connection.close()
    return found


def kill_at_places_of(server: Server, last: str) -> int:
    orders = (
        "CREATE TABLE orders (id bigint, x float, y float)",
        "INSERT INTO orders VALUES " + ", ".join(f"({n}, {n % 7 - 3}, {n % 5 - 2})" for n in range(ROWS)),
    )
    server.run(*orders)

    def clear_server() -> None:
        server.run(*(f"DROP TABLE IF EXISTS {table}" for table in ("scores", "aifx_positions", "aifx_requests")))

    def clear_file(connect: Callable[[str], Any], path: str) -> None:
        for file in Path().glob(f"{path}*"):  # the journal or the WAL too
            file.unlink()
        file_rows(connect, path, *orders)

    def act(url: str, kind: type[Connection], args: Sequence[str], at: int | None) -> int:
        with killed_at_calls(calls_of(kind), at) as places:
            assert ask(url, *args) == 0
        return places.made

    once = ("--request", "a.1")
    kills = kill_at_places(
        clear_server,
        partial(act, server.url, PostgresConnection, (*once, "--since-last")),
        partial(check, server.rows, server.url, *once, "--since-last"),
        last,
    )
    for url, kind, connect, path in (
        ("sqlite:///shop.db", SqliteConnection, sqlite3.connect, "shop.db"),
        ("duckdb:///shop.duckdb", DuckdbConnection, duckdb.connect, "shop.duckdb"),
    ):
        kills += kill_at_places(
            partial(clear_file, connect, path),
            partial(act, url, kind, once),
            partial(check, partial(file_rows, connect, path), url, *once),
            last,
        )
    return kills + kill_at_changes(last)


def kill_at_changes(last: str) -> int:
    """Kill before each change of a file of a folder, or before the last ones."""
    url, target, args = "sqlite:///shop.db", Path.cwd() / "scores", ("--request", "a.1")

    def clear() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()

    def act(at: int | None) -> int:
        with killed(target, at) as calls:
            assert ask(url, *args, target="scores") == 0
        return len(calls.made)

    def rows(statement: str) -> list[tuple[Any, ...]]:
        if "scores" not in statement:
            return [(1,)]
        return [(key,) for part in target.glob("*.parquet") for key in parquet.read_table(part)["key"].to_pylist()]

    def again() -> None:
        check(rows, url, *args, target="scores")
        assert sorted(path.name for path in target.iterdir()) == [".lock", "00001.parquet"]

    return kill_at_places(clear, act, again, last)


def kill_at_random(server: Server, count: int) -> int:
    """Kill, while other transactions add rows, of which each second one is committed late."""
    server.run(
        "CREATE TABLE orders (id bigserial PRIMARY KEY, x float8 DEFAULT 1, y float8 DEFAULT 2)",
        f"INSERT INTO orders SELECT FROM generate_series(1, {ROWS})",
    )
    chance = random.Random(count)

    def disturbed(delay: float, how: str) -> None:
        look = scoring.prediction_batch

        def armed(*args: Any) -> Any:
            if how == "call":
                threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
            Path("armed").touch()
            scoring.prediction_batch = look
            return look(*args)

        scoring.prediction_batch = armed
        ask(server.url, "--since-last")

    kills = 0
    for number in range(count):
        how, delay = chance.choice(("call", "backend", "server")), chance.random() * 0.3
        add_rows(server, number)
        Path("armed").unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            try:
                disturbed(delay, how)
            except BaseException as e:
                sys.stderr.write(repr(e))
                os._exit(1)
            os._exit(0)
        while not Path("armed").exists() and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.01)
        if how != "call":
            time.sleep(delay)
            if how == "server":
                server.kill()
                server.start()
            else:
                other = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IS NOT NULL AND pid <> "
                server.rows(f"{other}pg_backend_pid()")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        kills += 1
    assert forked(partial(finish, server)) == 0
    keys = [row[0] for row in server.rows("SELECT key::bigint FROM scores ORDER BY 1")]
    assert keys == [row[0] for row in server.rows("SELECT id FROM orders ORDER BY 1")]
    assert len(keys) > ROWS + count
    return kills


def finish(server: Server) -> None:
    """Wait for transactions that are open, and score the rest."""
    while server.rows("SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"):
        time.sleep(0.05)
    assert ask(server.url, "--since-last") == 0


def add_rows(server: Server, number: int) -> None:
    """Some rows now, and others in a transaction that began before them and is committed after a while."""

    def late() -> None:
        server.run("BEGIN; INSERT INTO orders DEFAULT VALUES; SELECT pg_sleep(1); COMMIT")

    if os.fork() == 0:
        try:
            late()
        finally:
            os._exit(0)
    server.run("INSERT INTO orders SELECT FROM generate_series(1, 25)")


def main() -> None:
    os.environ["PGPASSWORD"] = PASSWORD
    mode, count = sys.argv[1:]
    with postgresql_server(is_durable=True) as server:
        kills = kill_at_places_of(server, count) if mode == "places" else kill_at_random(server, int(count))
    sys.stdout.write(str(kills))


if __name__ == "__main__":
    main()
