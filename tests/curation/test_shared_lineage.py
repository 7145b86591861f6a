"""The histories of writers that share a root lose nothing, on a disk and on S3, also if one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import Application, s3_server

from aifx.core.stores import open_store
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.lineage import read_lineage
from aifx.data.versions.manifest import LINEAGE

WRITER = """
import sys
from toy_steps import Rows, WithoutLetter
from aifx.curation.execution import execute
from aifx.curation.step import Limits
from aifx.data.versions.catalog import open_catalog

root, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
catalog, limits = open_catalog(root), Limits(1 << 30, 1)
for number in range(count):
    parent = execute(Rows((), ((f"{name} {number}", "a dog"),)), name, catalog, limits).version
    execute(WithoutLetter((parent,), "d"), name, catalog, limits)
"""


def write(root: str, name: str, folder: Path, count: int = 1) -> subprocess.Popen[bytes]:
    """A process that makes versions of a data set, two for each count."""
    environ = {**os.environ, "AIFX_CACHE_DIR": str(folder / name), "PYTHONPATH": str(Path(__file__).parent)}
    (folder / name).mkdir(mode=0o700, exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", WRITER, root, name, str(count)], env=environ)


def check_history(catalog: Catalog, name: str, count: int) -> None:
    """Each version has the event of its step, once."""
    versions = catalog.versions(name)
    assert len(versions) == 2 * count
    assert sorted(catalog.store.folders(f"{LINEAGE}/{name}")) == versions
    for version in versions:
        manifest = catalog.manifest(f"{name}@{version}")
        (event,) = read_lineage(catalog, manifest.whole_reference)
        assert event["job"]["name"] == f"data.{manifest.step.name}"
        assert event["outputs"][0]["facets"]["version"]["datasetVersion"] == manifest.sha256


@pytest.mark.slow
@pytest.mark.representative("shared histories")
@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_two_processes_lose_nothing_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with s3_server(monkeypatch):
        root = "s3://bucket/datasets" if scheme == "s3" else str(tmp_path / "datasets")
        writers = [write(root, name, tmp_path, 4) for name in ("cats", "dogs")]
        assert [writer.wait() for writer in writers] == [0, 0]
        catalog = open_catalog(root)
        for name in ("cats", "dogs"):
            check_history(catalog, name, 4)


class Killer:
    """A layer before moto that kills a process at its request numbered `at` that changes something.

    Attributes:
        after: kill it after moto did what was asked.
        seen: the changes that were asked for.
    """

    def __init__(self) -> None:
        self.victim: subprocess.Popen[bytes] | None = None
        self.at, self.after, self.seen = -1, False, 0

    def wrapped(self, moto: Application) -> Application:
        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
            if environ["REQUEST_METHOD"] == "GET" or environ["REQUEST_METHOD"] == "HEAD" or self.victim is None:
                return moto(environ, start)
            self.seen += 1
            if self.seen - 1 != self.at:
                return moto(environ, start)
            done = list(moto(environ, start)) if self.after else []
            self.victim.send_signal(signal.SIGKILL)
            return done

        return answer


@pytest.mark.slow
def test_a_writer_that_is_killed_at_each_request_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = Killer()
    with s3_server(monkeypatch, killer.wrapped):
        killer.victim = write("s3://bucket/calm", "cats", tmp_path)
        assert killer.victim.wait() == 0
        changes = killer.seen
        calm = open_store("s3://bucket/calm").fs.find("bucket/calm/cats")
        assert changes > 10
        for after in (False, True):
            for at in range(1, changes, 3):
                root = f"bucket/{at}-{after}"
                folder = tmp_path / f"{at}-{after}"
                folder.mkdir()
                killer.at, killer.after, killer.seen = at, after, 0
                killer.victim = write(f"s3://{root}", "cats", folder)
                assert killer.victim.wait() == -signal.SIGKILL, at
                killer.victim = None
                assert write(f"s3://{root}", "cats", folder).wait() == 0
                catalog = open_catalog(f"s3://{root}")
                check_history(catalog, "cats", 1)
                found = catalog.store.fs.find(f"{root}/cats")
                assert [path.replace(root, "bucket/calm") for path in found] == calm


def test_what_is_no_event_is_no_history(tmp_path: Path) -> None:
    catalog = open_catalog(str(tmp_path))
    folder = tmp_path / LINEAGE / "cats" / ("0" * 12)
    folder.mkdir(parents=True)
    (folder / "torn.json").write_text('{"eventTime": ')
    (folder / ".whole.json.0123456789ab.tmp").write_text('{"eventTime": "2026"}\n')
    for number in (2, 1):
        (folder / f"{3 - number}.json").write_text(json.dumps({"eventTime": f"202{number}"}) + "\n")
    found = read_lineage(catalog, f"cats@{'0' * 64}")
    assert [event["eventTime"] for event in found] == ["2021", "2022"]
    assert read_lineage(catalog, f"cats@{'1' * 64}") == []
