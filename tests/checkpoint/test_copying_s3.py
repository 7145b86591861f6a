"""Checkpoints copied to a server with S3's API, on this machine, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from s3_server import s3_server

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.copying import copy_checkpoint, open_stored
from aifx.config.sections import CheckpointSection
from aifx.core.errors import CheckpointError
from aifx.core.stores import open_store


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_server(monkeypatch) as files:
        yield files


@pytest.mark.slow
def test_there_and_back(s3: Any, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSection(asynchronous=False))
    large = jnp.arange(5_000_000, dtype=jnp.float32)  # more than one part of an upload
    checkpoints.save(7, {"params": {"large": large, "small": jnp.ones(3)}}, host={})
    source, target = open_stored(str(tmp_path / "checkpoints" / "7")), open_store("s3://bucket/main")
    assert copy_checkpoint(source, target).copied_bytes == source.artifact.size_bytes
    assert copy_checkpoint(source, target).copied_bytes == 0

    s3.rm("bucket/main/7/manifest.json")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_stored("s3://bucket/main/7")
    files = source.artifact.files
    largest = max(files, key=lambda name: files[name].bytes)
    s3.pipe_file(f"bucket/main/7/{largest}", b"torn")
    assert copy_checkpoint(source, target).copied_bytes == files[largest].bytes

    copy_checkpoint(open_stored("s3://bucket/main/7"), open_store(str(tmp_path / "back")))
    found = Checkpoints(tmp_path / "back", CheckpointSection()).verify(7)
    assert (found.state_digest, found.files, found.damaged) == (source.manifest.state_digest, (), ())
