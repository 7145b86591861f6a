"""A factory: a line reads rows of a real PostgreSQL, and a server answers with the model that it promotes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from postgresql_server import PASSWORD, Server
from ticking import Ticking
from webhook_receiver import SECRET, Receiver

from aifx.core.project import Project
from aifx.core.stores import open_store
from aifx.data.versions.catalog import open_catalog
from aifx.lines.events import read_events
from aifx.registry.ledger import Entry
from aifx.registry.reports import verify_root
from aifx.registry.roots import MODELS, Root
from aifx.verbs.registry_acts import registry_init

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
best_by = "max accuracy"
[serve]
watch_every_s = 0.2
"""
POLICY = """
[aliases.production]
eval = { gates = ["accuracy >= 0.6"] }
better = { metric = "max accuracy", margin = 0.01 }
"""
LINE = """
[line]
jobs = 2
[[station]]
name = "data"
run = [
    "aifx data add readings URL --query 'SELECT * FROM readings' --key id --license LicenseRef-internal",
    "aifx data split readings --validation 0.15 --test 0.3",
]
environment = ["PGPASSWORD"]
[[station]]
name = "table"
run = "aifx data push {stations.data.reference} URL/clean_readings --yes"
environment = ["PGPASSWORD"]
[[station]]
name = "train"
run = "aifx train --run readings-{key} --set data.dataset={stations.data.reference}"
cooldown = "1s"
budget_per_day = 20
[[station]]
name = "push"
run = "aifx registry push {stations.train.run} readings"
[[station]]
name = "judge"
run = [
    "aifx eval --run {stations.train.run}",
    "aifx eval --run {stations.train.run} --against readings@production --allow-first --margin 0.01",
]
[[station]]
name = "promote"
run = [
    "aifx registry attest {stations.push.reference} --eval",
    "aifx registry attest {stations.push.reference} --comparison",
    "aifx registry promote {stations.push.reference} production",
]
after = ["judge"]
when = "verdict:judge or not verdict:judge"
[[notify]]
name = "ops"
url_from = "OPS_URL"
allow = ["127.0.0.0/8"]
"""
STATIONS = ("data", "table", "train", "push", "judge", "promote")
BATCHES = ((range(400), 0.3), (range(400, 1600), 1.0), (range(1600), 0.0))
"""Rows that arrive before each tick: their ids, and the share of them that have any label."""
PROMOTED = ("push", "attest", "attest", "promote")
REFUSED = ("push", "attest", "attest", "refuse")
PROBES = tuple({"id": -1, "heat": heat, "load": load} for heat in (0.0, 3.5) for load in (0.0, 3.5))
TABLE = "clean_readings"
WAIT_S = 120


class Factory(Ticking):
    """A project whose line reads a table of a server."""

    def __init__(
        self, root: Path, server: Server, hook: str = "", *, settings: str = SETTINGS, line: str = LINE
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        (root / "aifx.toml").write_text(settings)
        super().__init__(root)
        self.server, self.random = server, random.Random(0)
        self.environ = {**os.environ, "PGPASSWORD": PASSWORD, "OPS_URL": hook, "OPS_URL_SECRET": SECRET}
        self.write(line.replace("URL/", f"{server.url}/").replace("URL ", f"{server.url} "))
        tables = "DROP TABLE IF EXISTS readings, clean_readings, aifx_requests"
        columns = "id int8 PRIMARY KEY, heat float8, load float8, failing text"
        server.run(tables, f"CREATE TABLE readings ({columns})")

    def aifx(self, *words: str, code: int | None = 0) -> Any:
        command = [sys.executable, "-m", "aifx.commands.main", *words, "--json"]
        done = subprocess.run(
            command, cwd=self.root, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert code in (None, done.returncode), done.stdout + done.stderr
        return json.loads(done.stdout)

    def make_policy(self, policy: str = POLICY) -> None:
        (self.root / "policy.toml").write_text(policy)
        registry_init(self.root / "policy.toml", project=self.root)

    def arrive(self, ids: Sequence[int], shuffled: float = 0.0) -> None:
        """Rows whose label is whether two numbers are large together; a share of them has any label."""
        rows = []
        for number in ids:
            heat, load = self.random.randrange(8), self.random.randrange(8)
            is_any, any_label = self.random.random() < shuffled, self.random.random() < 0.5
            label = "yes" if (any_label if is_any else heat + load >= 7) else "no"
            rows.append(f"({number}, {heat / 2}, {load / 2}, '{label}')")
        update = "heat = excluded.heat, load = excluded.load, failing = excluded.failing"
        self.server.run(f"INSERT INTO readings VALUES {', '.join(rows)} ON CONFLICT (id) DO UPDATE SET {update}")

    def states(self, code: int = 0) -> dict[str, str]:
        return {one["station"]: one["state"] for one in self.aifx("line", "run", code=code)["stations"]}

    def entries(self) -> tuple[Entry, ...]:
        return Root(open_store(str(self.root / "registry"))).state("readings").entries

    def history(self) -> list[tuple[str, str]]:
        """What was done with which version, in order."""
        return [(one.action, one.version) for one in self.entries()]

    def ticks(self) -> int:
        """The number of ticks that have ended."""
        return sum(bool(one.facts.get("is_over")) for one in self.records("tick"))

    def promoted(self) -> list[str]:
        """The versions that the alias has meant."""
        return [version for action, version in self.history() if action == "promote"]

    def said(self) -> dict[str, Any]:
        """What there is: attempts, versions, runs, entries and rows, without times and random ids."""
        project, root = Project(self.root), Root(open_store(str(self.root / "registry")))
        kinds = ("tick", "started", "ended", "reported")
        attempts = (self.root / "line" / "attempts").iterdir()
        return {
            # The key of a station that reads from outside is a new one in each tick.
            "records": Counter(
                (one.kind, one.station, one.station != "data" and one.key, one.facts.get("outcome"))
                for one in self.records()
                if one.kind in kinds
            ),
            "attempts": Counter(path.name.partition("-")[0] for path in attempts),
            "events": Counter((one.type, one.subject) for one in read_events(project, root, {}).events),
        } | stored(self.root, self.server)

    @contextmanager
    def served(self, port: int = 0) -> Iterator[Served]:
        """A server that follows the alias, in a process of its own, which is killed when the block ends."""
        words = ["serve", "--model", "readings@production", "--watch", "--port", str(port), "--json"]
        command = [sys.executable, "-m", "aifx.commands.main", *words]
        with open(self.root / "serve.log", "wb") as log:
            process = subprocess.Popen(command, cwd=self.root, env=self.environ, stdout=subprocess.PIPE, stderr=log)
        with process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, (self.root / "serve.log").read_text()
                yield Served(self, process, json.loads(line)["url"])
            finally:
                process.kill()


def stored(root: Path, server: Server) -> dict[str, Any]:
    """What a project and its database have: versions, runs, entries and rows, without times."""
    catalog, registry = open_catalog(str(root / "datasets")), Root(open_store(str(root / "registry")))
    tables = {name for (name,) in server.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    return {
        "versions": {name: sorted(catalog.versions(name)) for name in catalog.names()},
        "runs": sorted(run.name for run in Project(root).runs()),
        "entries": [(model, one.number, one.action, one.version, one.alias)
                    for model in registry.store.folders(MODELS) for one in registry.state(model).entries],
        "problems": verify_root(registry, (), ()).problems,
        "rows": server.rows(f"SELECT id, heat, load, failing FROM {TABLE} ORDER BY id") if TABLE in tables else [],
        "requests": server.rows("SELECT count(*) FROM aifx_requests") if "aifx_requests" in tables else [],
    }  # fmt: skip


@dataclass
class Served:
    """A server of the factory's model."""

    factory: Factory
    process: subprocess.Popen[bytes]
    url: str

    def answers(self) -> list[str]:
        """What it answers to a few rows."""
        answer = httpx.post(f"{self.url}/v1/predict", json={"rows": PROBES}, timeout=WAIT_S, trust_env=False)
        return [json.dumps(one, sort_keys=True) for one in answer.json()["predictions"]]

    def adoptions(self) -> list[tuple[str, str]]:
        """What it wrote into the root: what it did with which version."""
        root = Root(open_store(str(self.factory.root / "registry")))
        (name,) = root.servers("readings")
        return [(one.action, one.version) for one in root.server_ledger("readings", name).entries()]

    def wait_for(self, versions: Sequence[str]) -> None:
        """Wait until it has adopted these, one after the other."""
        while self.adoptions() != [("adopt", version) for version in versions]:
            assert self.process.poll() is None, (self.factory.root / "serve.log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S) == 0, (self.factory.root / "serve.log").read_text()


def events(at: Receiver) -> list[tuple[str, str]]:
    """Type and subject of each event, in the order of its first arrival."""
    return [(one["type"].removeprefix("aifx."), one["subject"]) for one in {e["id"]: e for e in at.accepted}.values()]
