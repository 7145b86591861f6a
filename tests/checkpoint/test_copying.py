"""Checkpoints copied to folders and to a store that fsspec knows, and back."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import inprocess
import jax.numpy as jnp
import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.copying import copy_checkpoint, open_stored
from aifx.config.sections import CheckpointSection
from aifx.core import artifact_copies
from aifx.core.artifact import MANIFEST, SealedFile
from aifx.core.errors import CheckpointError, EnvironmentFault, UsageError
from aifx.core.json_files import write_json
from aifx.core.project import Project, RunDirectory
from aifx.core.stores import Store, open_store

STATE = {"params": {str(i): jnp.full((3000,), i, jnp.float32) for i in range(3)}}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "aifx.toml").write_text("")
    run = Project(tmp_path).run("main")
    run.path.mkdir(parents=True)
    run.config.write_text("[task]\nkind = 'language'\n")
    checkpoints = Checkpoints(run.checkpoints, CheckpointSection(asynchronous=False))
    checkpoints.bind(lambda: {"id": "1"})
    checkpoints.save(7, STATE, host={})
    digests = {"settings": {"sha256": "", "values": {}}, "assets": {}, "kernels": {}, "base": None}
    write_json(run.digests, {"schema_version": 2, "run_id": "1", **digests, "records": {}, "data": None})
    return run


@pytest.fixture
def remote() -> Iterator[str]:
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    memory = fsspec.filesystem("memory")
    if memory.exists(url):
        memory.rm(url, recursive=True)


def aifx(run: RunDirectory, *arguments: str, code: int = 0) -> Any:
    done = inprocess.run(["ckpt", "cp", *arguments, "--json"], run.path.parents[1], os.environ)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_whole(folder: Path) -> bool:
    found = Checkpoints(folder, CheckpointSection()).verify(7)
    return not found.files and not found.damaged


def test_there_and_back(run: RunDirectory, remote: str, tmp_path: Path) -> None:
    before = content(run.checkpoints)
    done = aifx(run, "last", remote)
    assert (done["target"], done["step"], done["copied_bytes"]) == (f"{remote}/7", 7, done["size_bytes"])
    assert aifx(run, "main:7", remote)["copied_bytes"] == 0
    aifx(run, f"{remote}/7", str(tmp_path / "disk"))
    assert content(tmp_path / "disk") == before
    shutil.rmtree(run.checkpoints)
    aifx(run, f"{remote}/7", "main:")
    assert (content(run.checkpoints), is_whole(run.checkpoints)) == (before, True)


def test_a_checkpoint_of_another_run_does_not_come_into_a_run(run: RunDirectory, tmp_path: Path) -> None:
    aifx(run, "7", str(tmp_path / "disk"))
    write_json(run.digests, {**json.loads(run.digests.read_text()), "run_id": "2"})
    assert "another run" in aifx(run, str(tmp_path / "disk" / "7"), "main:", code=2)["error"]["what"]


@pytest.mark.parametrize("is_remote", [True, False])
def test_an_interrupted_copy_is_none_and_goes_on(
    run: RunDirectory, remote: str, tmp_path: Path, is_remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = (
        open_stored(str(run.checkpoints / "7")),
        open_store(remote if is_remote else str(tmp_path / "disk")),
    )
    monkeypatch.setattr(artifact_copies, "THREADS", 1)
    written: list[str] = []
    real = artifact_copies._write

    def write(store: Store, name: str, blocks: Iterator[bytes], size: int) -> None:
        if len(written) == 2:
            raise EnvironmentFault("the network is gone")
        written.append(name)
        real(store, name, blocks, size)

    with monkeypatch.context() as patch:
        patch.setattr(artifact_copies, "_write", write)
        with pytest.raises(EnvironmentFault, match="network"):
            copy_checkpoint(source, target)
    with pytest.raises(CheckpointError):
        open_stored(target.below("7").url)
    done = copy_checkpoint(source, target)
    assert done.copied_bytes == done.size_bytes - sum(source.artifact.files[name].bytes for name in written)
    assert done.copied_bytes > 0
    assert open_stored(target.below("7").url).artifact == source.artifact
    assert is_remote or is_whole(tmp_path / "disk")


def test_what_arrives_is_read_again(run: RunDirectory, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.write

    def flipping(store: Store, name: str, blocks: Iterator[bytes]) -> None:
        real(store, name, iter([bytes([block[0] ^ 1]) + block[1:] for block in blocks]))

    monkeypatch.setattr(Store, "write", flipping)
    error = aifx(run, "7", remote, code=2)["error"]
    assert "changed on the way" in error["what"]
    assert not fsspec.filesystem("memory").exists(f"{remote}/7/{MANIFEST}")


def test_a_damaged_source_is_refused(run: RunDirectory, remote: str) -> None:
    path = max((p for p in run.checkpoints.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert "has other bytes" in aifx(run, "7", remote, code=2)["error"]["why"]
    path.unlink()
    assert "is missing" in aifx(run, "7", remote, code=2)["error"]["why"]


def test_another_checkpoint_is_not_replaced(run: RunDirectory, tmp_path: Path) -> None:
    target = tmp_path / "disk"
    Checkpoints(target, CheckpointSection(asynchronous=False)).save(7, {"params": jnp.ones(3)}, host={})
    before = content(target)
    assert "step 7" in aifx(run, "7", str(target), code=2)["error"]["what"]
    assert content(target) == before


def test_a_folder_that_cannot_be_made(run: RunDirectory) -> None:
    with pytest.raises(EnvironmentFault, match="/proc/nosuch"):
        copy_checkpoint(open_stored(str(run.checkpoints / "7")), open_store("/proc/nosuch"))


def test_the_room_is_asked_for_before_anything_is_written(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 100, 1, 1, 0, 0, 0, 0, 255)))
    assert "no room" in aifx(run, "7", str(tmp_path / "disk"), code=2)["error"]["what"]
    assert not content(tmp_path / "disk")


def test_places_that_fsspec_does_not_know() -> None:
    with pytest.raises(UsageError, match="nothing://"):
        open_store("nothing://x")


def test_names_outside_of_the_checkpoint(run: RunDirectory, remote: str, tmp_path: Path) -> None:
    """A manifest from a stranger cannot name a file beside the checkpoint."""
    folder = run.checkpoints / "7"
    manifest = open_stored(str(folder)).manifest
    (folder / MANIFEST).write_bytes(manifest.artifact({"../../outside": SealedFile(1, "0")}).encode())
    assert "../../outside" in aifx(run, "7", str(tmp_path / "disk"), code=2)["error"]["why"]
