"""A factory: rows of a real PostgreSQL become a promoted model, or a refused one, by ticks of a line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from postgresql_server import PASSWORD, Server, postgresql_server
from ticking import Ticking

SETTINGS = """
[task]
kind = "tabular"
[data]
target = "failing"
ignore = ["id"]
[objective]
kind = "classification"
[model]
width = 32
num_layers = 2
[train]
num_steps = 60
global_batch_size = 64
validate_every = 20
[optimizer]
learning_rate = 0.01
[checkpoint]
every = 20
[eval]
gates = ["accuracy >= 0.7"]
"""
POLICY = "[aliases.production]\neval = {}\n"
PAGE = Path(__file__).parents[2] / "docs/line.md"


def documented_line(url: str) -> str:
    """The line of the documentation for a database, without what keeps ticks apart in time."""
    section = PAGE.read_text().partition("### From a database to a model")[2]
    text = section.partition("```toml\n")[2].partition("```")[0]
    changes = {"postgresql://reader@db.example/plant": url, 'every = "1h"': "", '"6h"': '"1s"', "day = 2": "day = 20"}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


class Factory(Ticking):
    """A project whose line reads a table of a server."""

    def __init__(self, root: Path, server: Server) -> None:
        (root / "aifx.toml").write_text(SETTINGS)
        super().__init__(root)
        self.server, self.random = server, random.Random(0)
        self.environ = {**os.environ, "PGPASSWORD": PASSWORD}
        self.write(documented_line(server.url))
        (root / "policy.toml").write_text(POLICY)
        self.aifx("registry", "init", "--policy", "policy.toml")
        server.run("CREATE TABLE readings (id int8 PRIMARY KEY, heat float8, load float8, failing text)")

    def aifx(self, *words: str, code: int = 0) -> Any:
        command = [sys.executable, "-m", "aifx.commands.main", *words, "--json"]
        done = subprocess.run(
            command, cwd=self.root, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def arrive(self, ids: Sequence[int], *, shuffled: bool = False) -> None:
        """Rows whose label is whether both numbers have one sign; shuffled ones have any label."""
        rows = []
        for number in ids:
            heat, load = self.random.gauss(0, 1), self.random.gauss(0, 1)
            label = self.random.random() < 0.5 if shuffled else heat * load > 0
            rows.append(f"({number}, {heat}, {load}, '{'yes' if label else 'no'}')")
        update = "heat = excluded.heat, load = excluded.load, failing = excluded.failing"
        self.server.run(f"INSERT INTO readings VALUES {', '.join(rows)} ON CONFLICT (id) DO UPDATE SET {update}")

    def states(self, code: int = 0) -> dict[str, str]:
        return {one["station"]: one["state"] for one in self.aifx("line", "run", code=code)["stations"]}

    def history(self) -> list[tuple[str, str]]:
        """What was done with which version, in order."""
        entries = self.aifx("registry", "history", "readings")["entries"]
        return [(one["action"], one["version"]) for one in sorted(entries, key=lambda one: one["number"])]


@pytest.mark.slow
def test_worse_rows_are_refused_and_the_better_ones_after_them_are_promoted(tmp_path: Path) -> None:
    with postgresql_server() as server:
        factory = Factory(tmp_path, server)
        factory.arrive(range(400))
        factory.aifx("line", "check")
        assert set(factory.states().values()) == {"done"}
        first = factory.history()
        assert [action for action, _ in first] == ["push", "attest", "promote"]
        factory.arrive(range(400, 1600), shuffled=True)
        for _ in range(2):  # the second time there is nothing new to judge
            states = factory.states(code=1)
            assert (states["judge"], states["push"], states["promote"]) == ("verdict", "blocked", "blocked")
            assert factory.history() == first
        assert len(factory.records("ended", "judge")) == 2
        assert len(list((tmp_path / "runs").glob("readings-*"))) == 2
        factory.arrive(range(400, 1600))
        assert set(factory.states().values()) == {"done"}
        later = factory.history()
        assert later[:3] == first
        assert [action for action, _ in later[3:]] == ["push", "attest", "promote"]
        assert {version for _, version in first}.isdisjoint(version for _, version in later[3:])
