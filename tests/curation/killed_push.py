"""`aifx data push --request` that is killed before and after each statement, the commit and the lineage's record.

    python killed_push.py URL LAST

LAST is the number of last places to kill it at, or "all". The working directory has the data set `d` below `datasets`.
After each kill, the same command comes again. The rows and the request are in the database once, and the lineage names
the table once. The program prints the number of kills.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import inprocess
from adbc_driver_postgresql import dbapi
from faulty_files import forked
from killed_places import kill_at_places, killed_at_calls

from aifx.curation.databases import push
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.lineage import read_lineage
from aifx.data.versions.manifest import LINEAGE

URL, LAST = sys.argv[1:]
TABLE = "killed_push"


def ask() -> dict[str, Any]:
    command = ["data", "push", "d", f"{URL}/{TABLE}", "--request", "tick-7.push", "--root", "datasets", "--json"]
    done = inprocess.run(command, Path.cwd(), os.environ)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def act(at: int | None) -> int:
    """Ask, and be killed at a place. Returns how many there are."""
    functions = (
        (dbapi.Cursor, "execute"),
        (dbapi.Cursor, "adbc_ingest"),
        (dbapi.Connection, "commit"),
        (push, "record_push"),
    )
    with killed_at_calls(functions, at) as places:
        ask()
    return places.made


def rows(statement: str) -> list[tuple[Any, ...]]:
    with dbapi.connect(URL) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        found: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
        connection.commit()
        return found


def pushes() -> int:
    catalog = open_catalog(str(Path("datasets").absolute()))
    events = read_lineage(catalog, catalog.manifest("d").whole_reference)
    return sum(event["outputs"][0]["name"].endswith(f".{TABLE}") for event in events if event["outputs"])


def clear() -> None:
    for table in (TABLE, "aifx_requests"):
        rows(f"DROP TABLE IF EXISTS {table}")
    for path in Path("datasets", LINEAGE).rglob("*.json"):
        if f".{TABLE}" in path.read_text():
            path.unlink()


def check() -> None:
    document = ask()
    assert document["rows"] == 5
    assert rows(f"SELECT count(*) FROM {TABLE}") == [(5,)]
    assert rows("SELECT request FROM aifx_requests") == [("tick-7.push",)]
    assert pushes() == 1
    assert ask() == document | {"is_repeated": True}


def main() -> None:
    kills = kill_at_places(clear, act, check, LAST)
    assert forked(clear) == 0
    sys.stdout.write(str(kills))


if __name__ == "__main__":
    main()
