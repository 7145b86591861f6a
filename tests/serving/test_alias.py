"""A server that follows an alias: it adopts what the alias means, goes back at once, and keeps on without the root."""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from aifx.core.artifact import Artifact, files_below, seal, seal_files
from aifx.core.errors import AifxError, UsageError
from aifx.core.project import Project
from aifx.core.stores import open_store
from aifx.loading.restore import restore_run
from aifx.registry.acts import Caller, promote, push, rollback
from aifx.registry.ledger import file_name
from aifx.registry.reports import meaning_at, verify_root
from aifx.registry.roots import Root
from aifx.registry.versions import open_version, write_version
from aifx.serving.alias import VersionOfAlias, server_name
from aifx.serving.engine import Engine
from aifx.serving.start import start_engine
from aifx.serving.swap import Check, Watcher, watch

ANN = Caller("ann")
REFERENCE, SERVER = "whale@production", "host-8000"


@dataclass
class Served:
    """A server of production, whose watcher is asked by hand."""

    root: Root
    project: Project
    engine: Engine
    watcher: Watcher[Any]

    def push(self, step: int) -> None:
        run = self.project.run("main")
        push(self.root, "whale", lambda folder: write_version(run, self.project, step, folder), {}, ANN)

    def means(self, version: str) -> bool:
        return self.watcher.current == self.root.find(f"whale@{version}")[1].digest


@pytest.fixture
def served(project: Project, arrive: Callable[..., None], tmp_path: Path) -> Iterator[Served]:
    root = Root(open_store(str(tmp_path / "registry")))
    run = project.run("main")
    push(root, "whale", lambda folder: write_version(run, project, 1, folder), {}, ANN)
    promote(root, "whale@v1", "production", ANN)
    state, version = root.find(REFERENCE)
    directory, opened = open_version(root.fetch(state, version), REFERENCE, project)
    restored = restore_run(directory, opened, overrides=())
    engine = start_engine(restored, restored.config.serve)
    source = VersionOfAlias(root, REFERENCE, version.digest, project, (), server=SERVER)
    quiet = restored.config.serve.model_copy(update={"watch_every_s": 3600.0})
    watcher = watch(engine, quiet, source, canary=None, project=project)
    yield Served(root, project, engine, watcher)
    watcher.stop()
    engine.stop()


@pytest.mark.slow
@pytest.mark.representative("a server that follows an alias")
def test_an_alias_is_followed_and_what_was_adopted_is_written(served: Served, arrive: Callable[..., None]) -> None:
    watcher, root = served.watcher, served.root
    assert not watcher.look()
    first = served.engine.fingerprint
    arrive(2)
    served.push(2)
    assert not watcher.look()
    between = datetime.now(UTC)
    promote(root, "whale@v2", "production", ANN)
    assert watcher.look()
    assert served.means("v2")
    assert served.engine.fingerprint != first
    assert not watcher.look()
    # The way back is not compared with what serves.
    checks, judged = watcher._checks, list[object]()

    def counted(*of: Any) -> Iterator[Check]:
        for check in checks(*of):
            judged.append(check)
            yield check

    watcher._checks = counted
    assert rollback(root, "whale", "production", None, ANN).reference == "whale@v1"
    assert watcher.look()
    assert served.means("v1")
    assert served.engine.fingerprint == first
    assert not judged
    promote(root, "whale@v2", "production", ANN)
    assert watcher.look()
    assert judged
    rollback(root, "whale", "production", None, ANN)
    assert watcher.look()
    entries = root.server_ledger("whale", SERVER).entries()
    assert [root.state("whale").label(entry.version) for entry in entries] == ["v1", "v2", "v1", "v2", "v1"]
    assert entries[1].facts["head"] in [entry.digest for entry in root.state("whale").entries]
    meant = meaning_at(root, "whale", "production", between)
    assert (meant.version, meant.servers[0].version) == ("v1", "v1")
    assert served.engine.stats().compilations == 0
    watcher.close()
    (ended,) = meaning_at(root, "whale", "production", datetime.now(UTC)).servers
    assert ended.version == "v1"
    assert ended.until is not None
    again = VersionOfAlias(root, REFERENCE, ended.digest, served.project, (), server=SERVER)
    again.adopted(again.newest())
    (serving,) = meaning_at(root, "whale", "production", datetime.now(UTC)).servers
    assert serving.until is None
    assert not verify_root(root, (), ()).problems


@pytest.mark.slow
def test_the_end_of_a_server_does_not_wait_for_a_root_that_hangs(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("aifx.serving.swap.LEAVE_S", 0.05)
    monkeypatch.setattr(VersionOfAlias, "left", lambda source: released.wait())
    served.watcher.close()
    released.set()


@pytest.mark.slow
def test_a_rollback_does_not_wait_for_gates(
    served: Served, arrive: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watcher, root = served.watcher, served.root
    watcher._every_s, watcher._source._overrides = 0.0, ('eval.gates=["loss < 100"]',)  # type: ignore[attr-defined]
    arrive(2)
    served.push(2)
    promote(root, "whale@v2", "production", ANN)
    mark = f"0.{secrets.randbits(60)}"

    def started(*arguments: str) -> list[str]:
        assert arguments[:2] == ("eval", "--model")
        rollback(root, "whale", "production", None, ANN)
        return ["sleep", "600", mark]

    monkeypatch.setattr("aifx.serving.swap.aifx_command", started)
    with caplog.at_level(logging.INFO):
        assert not watcher.look()
    assert "is the way back" in caplog.text
    assert not [one for one in psutil.process_iter(["cmdline"]) if mark in (one.info["cmdline"] or ())]
    assert not watcher.look()
    assert served.means("v1")
    assert watcher.counts.refused == 0  # v2 may come again


@pytest.mark.slow
def test_the_server_goes_on_without_the_root_and_refuses_a_shorter_ledger(served: Served) -> None:
    watcher, root = served.watcher, served.root
    folder = Path(root.store.path)

    def looked(problem: str) -> None:
        with pytest.raises(AifxError, match=problem) if problem else contextlib.nullcontext():
            watcher.look()

    looked("")
    promote(root, "whale@v1", "canary", ANN)
    looked("")
    ledger = folder / "models" / "whale" / "ledger"
    restarted = VersionOfAlias(root, REFERENCE, str(watcher.current), served.project, (), server=SERVER)
    (ledger / file_name(3)).rename(folder / "third")
    looked("not the one that this server has seen")
    (ledger / file_name(2)).rename(folder / "second")
    with pytest.raises(AifxError, match="not the one that this server has seen"):
        restarted.newest()  # by what it adopted
    assert any("has seen the entry" in problem.why for problem in verify_root(root, (), ()).problems)
    (folder / "second").rename(ledger / file_name(2))
    (folder / "third").rename(ledger / file_name(3))
    looked("")
    shutil.move(folder, folder.with_name("away"))
    folder.write_text("no folder")
    looked("registry")
    folder.unlink()
    shutil.move(folder.with_name("away"), folder)
    looked("")
    assert served.means("v1")


@pytest.mark.slow
def test_another_tokenizer_is_refused_before_and_after(served: Served, arrive: Callable[..., None]) -> None:
    arrive(2)
    root, run, project = served.root, served.project.run("main"), served.project

    def other(folder: Path) -> Artifact:
        made = write_version(run, project, 2, folder)
        (folder / "assets" / "tokenizer.json").write_bytes((folder / "assets" / "tokenizer.json").read_bytes() + b" ")
        files = seal_files(folder, files_below(folder))
        artifact = Artifact(made.kind, made.version, made.content, files, notes=made.notes)
        seal(folder, artifact)
        return artifact

    push(root, "whale", other, {}, ANN)
    refused = promote(root, "whale@v2", "production", ANN, serve_check=True)
    assert refused.action == "refuse"
    assert "assets/tokenizer.json differs" in refused.findings[0].found
    promote(root, "whale@v2", "production", ANN)
    assert not served.watcher.look()
    assert served.watcher.counts.refused == 1
    assert served.means("v1")


def test_a_name_of_a_server_is_a_folder() -> None:
    assert "/" not in server_name(8000)
    assert server_name(8000).endswith("-8000")


@pytest.mark.slow
def test_a_version_that_never_changes_is_not_watched(served: Served) -> None:
    with pytest.raises(UsageError, match="--watch with --model whale@v1"):
        VersionOfAlias(served.root, "whale@v1", "", served.project, (), server=SERVER)
