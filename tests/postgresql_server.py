"""A PostgreSQL server of its own for tests, on a port of this machine, which can be killed and started again."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from held_port import held_port

START_S = 120
USER, PASSWORD, DATABASE = "factory", "s3cr3t-Pa55", "postgres"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "64MB",
    "max_connections": "40",
    "autovacuum": "off",
    "timezone": "Asia/Tokyo",  # far from UTC, so that a time in the wrong zone is seen
}


def find_programs() -> Path | None:
    """The folder of PostgreSQL's server programs: the newest in /usr/lib/postgresql, otherwise that of PATH."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda name: int(name.split("/")[4]))
    path = found[-1] if found else shutil.which("initdb")
    return Path(path).parent if path else None


@dataclass
class Server:
    """A server that answers while `start` was called and `kill` was not.

    Attributes:
        programs: the folder with `postgres`.
        data: its data folder.
        is_durable: whether it waits for the disk, as a server that is killed must.
    """

    programs: Path
    data: Path
    port: int
    is_durable: bool = False
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The database, without its password."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def environ(self) -> dict[str, str]:
        """The variable with the password."""
        return {"PGPASSWORD": PASSWORD}

    def start(self) -> None:
        settings = {**SETTINGS, "port": str(self.port)}
        if not self.is_durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self.programs / "postgres"), "-D", str(self.data), *options]
        with open(self.data.parent / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, **_as_server(self.data.parent)
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with suppress(Exception), self.connect():
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        pytest.fail(f"PostgreSQL does not start:\n{(self.data.parent / 'server.log').read_text()[-2000:]}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all of its processes, each of which leads a session, and wait for their end."""
        assert self.process is not None
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)
        self.process.wait(START_S)
        psutil.wait_procs(family, START_S)
        self.process = None

    @contextmanager
    def connect(self) -> Iterator[Any]:
        """A connection that commits each statement."""
        from adbc_driver_postgresql import dbapi

        uri = self.url.replace("@", f":{PASSWORD}@")
        with dbapi.connect(uri, autocommit=True) as connection:
            yield connection

    def run(self, *statements: str) -> None:
        with self.connect() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.executescript(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(query)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found


@contextmanager
def postgresql_server(*, is_durable: bool = False) -> Iterator[Server]:
    """A server with an empty database. Skips the test if PostgreSQL is not installed."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server: install the package postgresql (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="aifx-postgresql-"))
    with held_port() as port:
        server = Server(programs, folder / "data", port, is_durable)
        try:
            if os.getuid() == 0:
                shutil.chown(folder, "postgres")
            password = folder / "password"
            password.write_text(PASSWORD)
            password.chmod(0o644)
            command = [programs / "initdb", "-D", server.data, "-U", USER, "--pwfile", password, "-A", "scram-sha-256"]
            options = ["--no-sync", "-E", "UTF8", "--locale=C", "--no-instructions"]
            made = subprocess.run(
                [*command, *options], capture_output=True, text=True, check=False, **_as_server(folder)
            )
            assert made.returncode == 0, made.stdout + made.stderr
            server.start()
            yield server
        finally:
            if server.process is not None:
                server.kill(signal.SIGQUIT)
            shutil.rmtree(folder, ignore_errors=True)


def _as_server(folder: Path) -> dict[str, Any]:
    """Arguments of a process of the server, which refuses to run as root."""
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    return {"cwd": folder, "env": environ, **user}
