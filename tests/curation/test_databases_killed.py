"""`aifx data add` from a PostgreSQL whose server, or whose reader, is killed midway: nothing is lost or mixed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inprocess
import pytest
from adding import environ_of, rows_of
from postgresql_server import Server, postgresql_server

from aifx.curation.databases import postgresql, sources
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version

ROWS = 120_000
SQL = "SELECT * FROM long"
SMALL = {(postgresql, "BATCH_BYTES"): 1 << 19, (sources, "PART_BYTES"): 1 << 21}
"""A dozen parts of several batches, more in all than the buffers of a connection hold."""

PROGRAM = """
import os, signal, sys
from aifx.commands.main import run
from aifx.curation.databases import postgresql, sources
postgresql.BATCH_BYTES, sources.PART_BYTES = 1 << 19, 1 << 21
end, parts = sources.Spool._end, []
def killing(*args):
    end(*args)
    parts.append(args)
    if len(parts) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
sources.Spool._end = killing
run(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql_server(is_durable=True) as found:
        rows = f"SELECT i::int8 AS id, repeat(md5(i::text), 6) AS note FROM generate_series(1, {ROWS}) AS i"
        found.run(f"CREATE TABLE long AS {rows}", "ALTER TABLE long ADD PRIMARY KEY (id)")
        yield found


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for (module, name), value in SMALL.items():
        monkeypatch.setattr(module, name, value)


def arguments(server: Server, name: str, *args: str) -> list[str]:
    command = ["data", "add", name, server.url, "--query", SQL, "--license", "MIT", "--root", "datasets"]
    return [*command, *(args or ("--key", "id"))]


def environ(folder: Path, server: Server) -> dict[str, str]:
    return environ_of(folder) | server.environ


def add(folder: Path, server: Server, name: str = "d", *args: str) -> Any:
    return inprocess.run(arguments(server, name, *args), folder, environ(folder, server))


def version_of(folder: Path, name: str = "d") -> Version:
    return open_catalog(str(folder / "datasets")).open(name)


def rows_in(version: Version) -> list[tuple[int, str]]:
    return [(row["id"], row["note"]) for row in rows_of(version)]


@pytest.mark.representative("PostgreSQL")
def test_a_killed_reader_goes_on(tmp_path: Path, server: Server) -> None:
    command = [sys.executable, "-c", PROGRAM, *arguments(server, "d")]
    killed = subprocess.run(command, cwd=tmp_path, env=environ(tmp_path, server), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = add(tmp_path, server)
    assert resumed.returncode == 0, resumed.stderr
    assert "still has them" in resumed.stderr
    assert add(tmp_path, server, "other").returncode == 0
    assert version_of(tmp_path).manifest.version == version_of(tmp_path, "other").manifest.version
    assert rows_in(version_of(tmp_path)) == server.rows("SELECT * FROM long ORDER BY id")


@pytest.mark.slow
@pytest.mark.parametrize("is_keyed", [True, False])
def test_a_killed_server(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, is_keyed: bool) -> None:
    """With a key, a read goes on, and never mixes two times: rows that changed meanwhile are read again."""
    options = ("--key", "id") if is_keyed else ("--kind", "table")
    take, batches = sources._Growing.add, []

    def killing(*args: Any) -> None:
        take(*args)
        batches.append(args)
        if len(batches) == 15:  # of 52; three parts are whole
            server.kill()

    with monkeypatch.context() as patched:
        patched.setattr(sources._Growing, "add", killing)
        lost = add(tmp_path, server, "d", *options)
    assert (lost.returncode, "when the server answers" in lost.stderr) == (2, True), lost.stderr
    gone = add(tmp_path, server, "d", *options)
    assert (gone.returncode, "onnection refused" in gone.stderr) == (2, True), gone.stderr
    assert not (tmp_path / "datasets" / "d" / "latest").exists()
    server.start()
    middle = server.rows("SELECT id FROM long ORDER BY id OFFSET 15000 LIMIT 1")[0][0]  # in the second part
    server.run(f"UPDATE long SET note = note || 'x' WHERE id = {middle}")
    server.run("DELETE FROM long WHERE id = (SELECT max(id) FROM long)", f"INSERT INTO long VALUES ({-middle}, 'new')")
    resumed = add(tmp_path, server, "d", *options)
    assert resumed.returncode == 0, resumed.stderr
    assert ("read again" in resumed.stderr) == is_keyed
    assert sorted(rows_in(version_of(tmp_path))) == server.rows("SELECT * FROM long ORDER BY id")
