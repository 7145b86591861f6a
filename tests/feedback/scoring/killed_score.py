"""`aifx score --request` that is killed: at each statement and commit, or at random, as its server is.

    python killed_score.py places LAST      at the last places of PostgreSQL, SQLite and a folder, or "all"
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import inprocess
from faulty_files import forked, killed
from postgresql_server import PASSWORD, Server, postgresql_server
from pyarrow import parquet

import aifx.feedback.scoring.database_source
import aifx.feedback.scoring.database_target
import aifx.feedback.scoring.file_target
import aifx.feedback.scoring.scoring as scoring
import aifx.verbs.scoring  # noqa: F401  # once, instead of in each process
from aifx.feedback.scoring.connections import Connection, PostgresConnection, SqliteConnection

ROWS = 24
COMMIT_ROWS = 10
COUNT = Path("count")


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


def killed_at(url: str, kind: type[Connection], at: int, *args: str) -> None:
    """Ask, and be killed before or after a statement or commit; then write down how many of these places there are."""
    passed = 0

    def pass_by() -> None:
        nonlocal passed
        if passed == at:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            pass_by()
            result = real(*args, **kwargs)
            pass_by()
            return result

        return call

    for name in ("rows", "insert", "_commit"):
        mock.patch.object(kind, name, counted(getattr(kind, name))).start()
    assert ask(url, *args) == 0
    COUNT.write_text(str(passed))


def check(rows: Callable[[str], list[tuple[Any, ...]]], url: str, *args: str, target: str = "") -> None:
    """Ask again: each row is scored once, and the answer is that of a call that nothing disturbed."""
    assert ask(url, *args, target=target) == 0
    first = answer()
    assert first["scored"] == ROWS
    assert sorted(int(row[0]) for row in rows("SELECT key FROM scores")) == list(range(ROWS))
    assert rows("SELECT count(*) FROM aifx_requests") == [(1,)]
    assert ask(url, *args, target=target) == 0
    assert answer() == first | {"is_repeated": True}


def sqlite_rows(statement: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect("shop.db")
    found = connection.execute(statement).fetchall()
    connection.commit()
    connection.close()
    return found


def kill_at_places(server: Server, last: str) -> int:
    sql = (
        "CREATE TABLE orders (id {}, x float, y float)",
        "INSERT INTO orders VALUES " + ", ".join(f"({n}, {n % 7 - 3}, {n % 5 - 2})" for n in range(ROWS)),
    )
    server.run(sql[0].format("bigint"), sql[1])
    for statement in (sql[0].format("INTEGER"), sql[1]):
        sqlite_rows(statement)
    tables = ("scores", "aifx_positions", "aifx_requests")

    def clear_server() -> None:
        server.run(*(f"DROP TABLE IF EXISTS {table}" for table in tables))

    def clear_file() -> None:
        for table in tables:
            sqlite_rows(f"DROP TABLE IF EXISTS {table}")

    kills = 0
    for url, kind, rows, clear, args in (
        (server.url, PostgresConnection, server.rows, clear_server, ("--request", "a.1", "--since-last")),
        ("sqlite:///shop.db", SqliteConnection, sqlite_rows, clear_file, ("--request", "a.1")),
    ):
        assert forked(partial(killed_at, url, kind, -1, *args)) == 0
        places = int(COUNT.read_text())
        for at in range(0 if last == "all" else places - int(last), places):
            assert forked(clear) == 0
            assert forked(partial(killed_at, url, kind, at, *args)) == -signal.SIGKILL, at
            assert forked(partial(check, rows, url, *args)) == 0, f"{kind.__name__}: killed at place {at} of {places}"
            kills += 1
    return kills + kill_at_changes(last)


def kill_at_changes(last: str) -> int:
    """Kill before each change of a file of a folder, or before the last ones."""
    url, target, args = "sqlite:///shop.db", Path.cwd() / "scores", ("--request", "a.1")

    def write(at: int | None) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        with killed(target, at) as calls:
            assert ask(url, *args, target="scores") == 0
        COUNT.write_text(str(len(calls.made)))

    def rows(statement: str) -> list[tuple[Any, ...]]:
        if "scores" not in statement:
            return [(1,)]
        return [(key,) for part in target.glob("*.parquet") for key in parquet.read_table(part)["key"].to_pylist()]

    def again() -> None:
        check(rows, url, *args, target="scores")
        assert sorted(path.name for path in target.iterdir()) == [".lock", "00001.parquet"]

    assert forked(partial(write, None)) == 0
    places = int(COUNT.read_text())
    kills = range(0 if last == "all" else places - int(last), places)
    for at in kills:
        assert forked(partial(write, at)) == -signal.SIGKILL, at
        assert forked(again) == 0, f"killed before change {at} of {places}"
    return len(kills)


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
        kills = kill_at_places(server, count) if mode == "places" else kill_at_random(server, int(count))
    sys.stdout.write(str(kills))


if __name__ == "__main__":
    main()
