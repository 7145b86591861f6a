"""A server of a table's model follows its alias to a version of other rows, whose columns have other means and bins."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import inprocess
import model_runs
import pytest

from aifx.core.project import Project
from aifx.core.web.traffic import AccessLog
from aifx.loading.restore import restore_run
from aifx.registry.acts import Act, Caller, promote, push, rollback
from aifx.registry.roots import Root, open_root
from aifx.registry.versions import open_stored, write_version
from aifx.serving.alias import VersionOfAlias
from aifx.serving.http.app import make_app
from aifx.serving.http.services import open_service
from aifx.serving.swap import Watcher

ANN = Caller("ann")
ROWS = [{"amount": amount, "colour": colour} for amount in (-1.5, 0.25, 40.0) for colour in "xy"]
TEXTS = {
    "v1": lambda text: text,
    # Other means, bins and categories.
    "v2": lambda text: "".join(line.replace(",x,", ",w,", 1) if n % 6 else line for n, line in scaled(text)),
    "v3": lambda text: text.replace("amount,colour", "amount,hue"),
    "v4": lambda text: text.replace(",yes", ",sure"),
    "v5": lambda text: text,
}
"""What the file of the table becomes before each version is made."""
SETTINGS = {"v5": ("model.embed_dim=16", "model.num_layers=2")}


def scaled(text: str) -> Iterator[tuple[int, str]]:
    """The numbers and lines of a table with amounts of another mean and scale."""
    head, *lines = text.splitlines(keepends=True)
    yield 0, head
    for number, line in enumerate(lines, 1):
        amount, comma, rest = line.partition(",")
        yield number, f"{float(amount) * 9 + 30:.3f}{comma}{rest}"


@dataclass
class Served:
    """A server of readings@production, whose watcher is asked by hand."""

    root: Root
    project: Project
    state: Any
    watcher: Watcher[Any]

    def answer(self) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            transport = httpx.ASGITransport(make_app(self.state))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                answer = await client.post("/v1/predict", json={"rows": ROWS})
                ready = await client.get("/ready")
            return {**answer.json(), "digest": ready.json()["served"]["digest"]}

        return asyncio.run(ask())

    def predicted(self, version: str) -> list[Any]:
        """The predictions of `aifx predict`."""
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        words = ["predict", "--model", f"readings@{version}", "-"]
        done = inprocess.run(words, self.project.root, dict(os.environ), stdin=lines)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def promote(self, version: str, *, serve_check: bool = True) -> Act:
        return promote(self.root, f"readings@{version}", "production", ANN, serve_check=serve_check)

    def digest(self, version: str) -> str:
        return self.root.find(f"readings@{version}")[1].digest


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    project = model_runs.make_project(tmp_path / "project", model_runs.TABLE)
    root, table = open_root(str(project.root / "registry")), project.root / "data/table.csv"
    text = table.read_text()
    for name, changed in TEXTS.items():
        table.write_text(changed(text))
        run = model_runs.make_run(project, *SETTINGS.get(name, ()), name=name)

        def write(folder: Path, run: Any = run) -> Any:
            return write_version(run, project, 1, folder)

        push(root, "readings", write, {}, ANN)
    promote(root, "readings@v1", "production", ANN)
    state, version = root.find("readings@production")
    directory, opened = open_stored(root, state, version, "readings@production", project, None)
    restored = restore_run(directory, opened, overrides=("serve.watch_every_s=3600",))
    log = AccessLog(tmp_path / "access.jsonl")
    service = open_service(restored, name="main", settings=restored.config.serve, log=log)
    source = VersionOfAlias(root, "readings@production", version.digest, project, (), server="host-8000")
    watcher = service.watch(source, None)
    yield Served(root, project, service.state, watcher)
    watcher.stop()
    service.state.stop()
    service.state.close()


@pytest.mark.representative("a server that follows a retrained table")
def test_a_retrained_table_is_adopted_and_rows_are_read_by_the_model_that_answers_them(served: Served) -> None:
    first = served.answer()
    assert first["predictions"] == served.predicted("v1")
    assert served.promote("v2").action == "promote"
    encode = served.state._encode
    looks = list[Callable[[], bool]]([served.watcher.look])

    def encoded_before_the_swap(*given: Any) -> Any:
        found = encode(*given)
        assert all(look() for look in looks)
        looks.clear()
        return found

    served.state._encode = encoded_before_the_swap
    between = served.answer()
    assert not looks
    assert (between["predictions"], between["digest"]) == (first["predictions"], served.digest("v2"))
    assert between["system_fingerprint"] == first["system_fingerprint"]
    second = served.answer()
    assert second["predictions"] == served.predicted("v2") != first["predictions"]
    assert second["system_fingerprint"] == served.state.engine.fingerprint != first["system_fingerprint"]
    rollback(served.root, "readings", "production", None, ANN)
    assert served.watcher.look()
    assert served.answer() == first
    for version, found in (("v3", "colour"), ("v4", "sure")):
        refused = served.promote(version)
        assert refused.action == "refuse"
        assert found in refused.findings[0].found
        served.promote(version, serve_check=False)
        assert not served.watcher.look()
    assert served.watcher.counts.refused == 2
    assert served.answer() == first
    assert served.promote("v5", serve_check=False).action == "promote"
    assert served.watcher.look()
    assert served.answer()["predictions"] == served.predicted("v5")
    assert served.state.engine.stats().compilations == 0
