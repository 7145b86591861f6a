"""The commands of a factory, each killed before each change of a file and around each request to the database.

    python killed_effects.py FOLDER TICK EVERY

The commands of a tick run one after the other: in tick 0 a model is promoted, in tick 1 refused, in tick 2 promoted
over another. Each is killed in copies of the folder that the one before it left, and asked for again with the same id.
Its answer, and the versions, runs, entries and rows, are those of an undisturbed one. Asked once more, it does nothing.
A training is killed before each EVERYth change. The program prints the number of kills of each command, as JSON.

The changes of a command are as many in each run, and so the time is bounded: less than an hour per tick on two cores
that other programs use, too. What TensorStore writes in C++ is no change here, but the rename that makes it a
checkpoint is.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import inprocess
from adbc_driver_postgresql import dbapi
from factory import BATCHES, Factory, stored
from faulty_files import forked, kill_at_each_change
from postgresql_server import PASSWORD, Server, postgresql_server

from aifx.lines.bindings import bind
from aifx.lines.commands import Command, find_command, identity_of
from aifx.lines.file import read_line

TABLES = ("clean_readings", "aifx_requests")
"""Those that a factory writes."""

KILLED = (
    ("data", "table", "train", "push", "judge", "promote"),
    ("judge", "promote"),
    ("data", "table", "push", "judge", "promote"),
)
"""Stations whose commands are killed, per tick: in tick 1 those that refuse. A training is no other in tick 2."""

NEVER = 1 << 30
"""Number of a change that no command makes."""


@dataclass
class Effect:
    """A command of a tick in a folder of its own."""

    folder: Path
    words: list[str]
    request: str
    server: Server

    @property
    def command(self) -> Command:
        return find_command(self.words)

    @property
    def outcome(self) -> Path:
        """A file with the answer and the state that an undisturbed command left."""
        return self.folder.with_name("outcome")

    def kill(self, state: Path, first: int, every: int) -> int:
        """Kill it in copies of a folder. Returns the number of kills."""
        self.outcome.unlink(missing_ok=True)
        self.folder.mkdir()
        assert forked(lambda: keep(self.server)) == 0

        def prepare(base: Path) -> None:
            shutil.copytree(state, base, symlinks=True)

        return kill_at_each_change(self.folder, prepare, self.write, self.check, first=first, every=every)

    def write(self, root: Path) -> None:
        """Ask for the first time, in the state before the command."""
        restore(self.server)
        document = self.ask(root)
        if not self.outcome.exists():
            outcome = document, self.answer(document), stored(root, self.server)
            self.outcome.write_bytes(pickle.dumps(outcome))

    def answer(self, document: dict[str, Any]) -> dict[str, Any]:
        """What later stations depend on."""
        return identity_of(self.words, document, 0)

    def ask(self, root: Path) -> dict[str, Any]:
        options = ["--request", self.request] if self.command.takes_request else []
        with requests_as_changes(root):
            done = inprocess.run([*self.words, "--json", *options], root, os.environ)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == 0 or "error" not in document, document
        return document

    def check(self, root: Path, calm: Path) -> None:
        """Ask again after a kill, and once more."""
        del calm
        _, answer, state = pickle.loads(self.outcome.read_bytes())
        for _ in range(1 + self.command.takes_request):
            document = self.ask(root)
            same("answer", self.answer(document), answer)
            found = stored(root, self.server)
            for name in found:
                same(name, found[name], state[name])
        assert not self.command.takes_request or document["is_repeated"], document


def same(name: str, found: Any, expected: Any) -> None:
    assert found == expected, f"{name}: {found} is not {expected}"


@contextmanager
def requests_as_changes(root: Path) -> Iterator[None]:
    """Change a file before and after each request to a database, so that there is a kill between."""

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            change()
            result = real(*args, **kwargs)
            change()
            return result

        return call

    def change() -> None:
        os.close(os.open(root / "asked", os.O_CREAT | os.O_WRONLY))

    places = ((dbapi.Cursor, "execute"), (dbapi.Cursor, "adbc_ingest"), (dbapi.Connection, "commit"))
    with ExitStack() as patches:
        for owner, name in places:
            patches.enter_context(mock.patch.object(owner, name, around(getattr(owner, name))))
        yield


def tables(server: Server, schema: str) -> list[str]:
    query = f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'"
    return [name for (name,) in server.rows(query) if name in TABLES]


def keep(server: Server) -> None:
    """Copy the tables that a command may write."""
    copies = [
        statement
        for name in tables(server, "public")
        for statement in (
            f"CREATE TABLE kept.{name} (LIKE {name} INCLUDING ALL)",
            f"INSERT INTO kept.{name} TABLE {name}",
        )
    ]
    server.run("DROP SCHEMA IF EXISTS kept CASCADE", "CREATE SCHEMA kept", *copies)


def restore(server: Server) -> None:
    for name in tables(server, "public"):
        server.run(f"DROP TABLE {name}")
    for name in tables(server, "kept"):
        server.run(f"CREATE TABLE {name} (LIKE kept.{name} INCLUDING ALL)", f"INSERT INTO {name} TABLE kept.{name}")


def main() -> None:
    folder, killed_tick, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.environ["PGPASSWORD"] = PASSWORD
    state, trial, kills = folder / "state", folder / "trial", Counter[str]()
    outputs = dict[str, dict[str, Any]]()
    with postgresql_server() as server:
        factory = Factory(trial / "root", server)
        factory.make_policy()
        factory.root.rename(state)
        trial.rmdir()
        line = read_line(state / "line.toml")
        for tick, (ids, shuffled) in enumerate(BATCHES[: killed_tick + 1]):
            factory.arrive(ids, shuffled=shuffled)
            for station in line.stations.values():
                for number, words in enumerate(bind(station, {}, outputs, f"tick{tick}")):
                    effect = Effect(trial, words, f"{station.name}-{tick}-{number}", server)
                    is_killed = tick == killed_tick and station.name in KILLED[tick]
                    stride = every if effect.command.trains else 1
                    if made := effect.kill(state, 0 if is_killed else NEVER, stride):
                        kills[effect.command.name] += made
                    outputs[station.name], *_ = pickle.loads(effect.outcome.read_bytes())
                    shutil.rmtree(state)
                    (trial / "root").rename(state)
                    shutil.rmtree(trial)
    sys.stdout.write(json.dumps(kills))


if __name__ == "__main__":
    main()
