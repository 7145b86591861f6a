"""Attacks through the caches: folders that others own, prepare or can write to, whose programs would run as ours."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from aifx.core.artifact import writable_folder
from aifx.core.errors import EnvironmentFault
from aifx.core.files import make_private
from aifx.core.project import cache_path
from aifx.health.check import last_path
from aifx.health.probes import disk
from aifx.health.probes import jax as jax_probe
from aifx.machine.compilation_cache import enable_compilation_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "above" / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "above" / "cache"
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o177])
def test_caches_are_private_whatever_the_umask(cache: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        enable_compilation_cache()
        with writable_folder(cache_path("tokens")):
            pass
    finally:
        os.umask(before)
    for folder in (cache.parent, cache, cache / "jax", cache / "tokens"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(("mode", "who"), [(0o777, "everyone"), (0o770, "its group")])
@pytest.mark.parametrize("name", [".", "jax"])
def test_a_folder_that_others_can_write_is_refused(cache: Path, name: str, mode: int, who: str) -> None:
    make_private(cache / "jax")
    (cache / name).chmod(mode)
    with pytest.raises(EnvironmentFault, match="is not used") as caught:
        enable_compilation_cache()
    assert who in caught.value.why
    assert caught.value.hint == f"chmod go-w {cache / name}"
    assert jax.config.jax_compilation_cache_dir is None
    if name == ".":
        with pytest.raises(EnvironmentFault):
            last_path([])
        assert "cannot" not in str(disk.fsync_ms())  # the doctor reports it and goes on
        assert who in jax_probe._cache()["why"]


def test_a_folder_of_another_user_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_private(cache)
    found = cache.stat()
    stranger: Any = SimpleNamespace(st_uid=found.st_uid + 4321, st_mode=found.st_mode)
    monkeypatch.setattr("aifx.core.files.Path.stat", lambda path, **_: stranger if path == cache else found)
    with pytest.raises(EnvironmentFault, match="is not used") as caught:
        cache_path("jax")
    assert "belongs to uid" in caught.value.why
    assert "AIFX_CACHE_DIR" in caught.value.hint


def test_the_folder_that_the_operator_names_for_jax_is_checked_too(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "shared"))
    with pytest.raises(EnvironmentFault, match="shared is not used"):
        enable_compilation_cache()
