"""A checkpoint is an artefact: the process that writes a file seals it, and its manifest has each fact once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.copying import copy_checkpoint, open_stored
from aifx.checkpoint.manifest import ArrayEntry, Damaged, read_checkpoint, read_manifest
from aifx.checkpoint.verification import verify_stored
from aifx.checkpoint.writing import write_checkpoint
from aifx.config.sections import CheckpointSection
from aifx.core.artifact import MANIFEST
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError
from aifx.core.stores import open_store

ARRAYS = {"params/w": np.arange(300, dtype=np.float32).reshape(30, 10), "step": np.int32(7) * np.ones((), np.int32)}


def saved(directory: Path) -> Path:
    checkpoints = Checkpoints(directory, CheckpointSection(asynchronous=False))
    checkpoints.save(7, {"params": {"w": ARRAYS["params/w"]}, "step": ARRAYS["step"]}, host={"tokens": 3})
    return directory / "7"


def streamed(directory: Path) -> Path:
    directory.mkdir()
    entries = {name: ArrayEntry(array.dtype.name, array.shape, "") for name, array in ARRAYS.items()}
    write_checkpoint(directory, 7, entries, ARRAYS.items(), run={}, host={"tokens": 3})
    return directory / "7"


@pytest.mark.parametrize("write", [saved, streamed])
def test_each_file_is_sealed_once_and_each_fact_stands_once(tmp_path: Path, write) -> None:
    folder = write(tmp_path / "checkpoints")
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    document = json.loads(found.pop(MANIFEST).read_bytes())
    assert (document["kind"], document["version"], document["descriptions"]) == ("checkpoint", 5, {})
    assert document["files"] == {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path.read_bytes())} for name, path in found.items()
    }
    assert all(name.startswith("state/") for name in found)
    assert document["content"].keys() == {"step", "saved_at", "validation_loss", "arrays", "host", "score", "run"}
    artifact, manifest = read_checkpoint(folder)
    assert (len(artifact.digest), artifact.digest) == (64, document["digest"])
    assert manifest.size_bytes == sum(array.nbytes for array in ARRAYS.values())
    assert sorted(path.name for path in folder.parent.iterdir()) == ["7"]


def test_both_writers_give_the_same_state(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one"), streamed(tmp_path / "other")
    assert read_manifest(one).state_digest == read_manifest(other).state_digest


def test_another_kind_of_artefact_and_another_version_are_no_damage(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoints")
    artifact, _ = read_checkpoint(folder)
    for other in (replace(artifact, kind="dataset"), replace(artifact, version=4)):
        (folder / MANIFEST).write_bytes(other.encode())
        with pytest.raises(AifxError) as refused:
            read_manifest(folder)
        assert not isinstance(refused.value, Damaged)


def test_a_copy_holds_nothing_of_an_interrupted_copy_of_another_checkpoint(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoints")
    for name in ("stray", "state/d/stray", "state/process_1/d/stray"):
        stray = tmp_path / "copy" / "7.unfinished" / "7" / name
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_bytes(b"x")
    copy_checkpoint(open_stored(str(folder)), open_store(str(tmp_path / "copy")))
    names = [
        {p.relative_to(at).as_posix() for p in at.rglob("*") if p.is_file()} for at in (folder, tmp_path / "copy/7")
    ]
    assert names[0] == names[1]


def test_a_file_that_the_manifest_does_not_name_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoints")
    assert verify_stored(folder).files == ()
    (folder / "state" / "d" / "stray").write_bytes(b"x")
    found = verify_stored(folder)
    assert found.damaged == ()
    (line,) = found.files
    assert "state/d/stray" in line


def test_a_damaged_copy_is_repaired(tmp_path: Path) -> None:
    source, target = open_stored(str(saved(tmp_path / "checkpoints"))), open_store(str(tmp_path / "copy"))
    copy_checkpoint(source, target)
    name, file = max(source.artifact.files.items(), key=lambda item: item[1].bytes)
    (tmp_path / "copy" / "7" / name).write_bytes(b"x")
    assert copy_checkpoint(source, target).copied_bytes == file.bytes
    found = Checkpoints(tmp_path / "copy", CheckpointSection()).verify(7)
    assert (found.files, found.damaged) == ((), ())
