"""The compilation cache: everything is kept, what is damaged is made anew once, and nothing is said twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import warm


def train(tiny, cache: Path, run: str, **environ: str) -> str:
    args = ["train", "--run", run, "--set", "train.num_steps=3", "--set", "model.num_layers=1", "--json"]
    done = warm.run(args, tiny.root, {**os.environ, "AIFX_CACHE_DIR": str(cache), **environ})
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(autouse=True)
def _own_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)


def compiled(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name.endswith("-cache")}


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("is_own", [False, True], ids=["aifx's folder", "a folder of one's own"])
def test_damaged_entries_are_made_anew_once(tiny, tmp_path: Path, is_own: bool) -> None:
    folder = tmp_path / "own" if is_own else tmp_path / "cache/jax"
    own = {}
    if is_own:
        folder.mkdir()
        own = {"JAX_COMPILATION_CACHE_DIR": str(folder)}
    train(tiny, tmp_path / "cache", "first", **own)
    assert (tmp_path / "cache/jax").exists() == (not is_own)
    whole = compiled(folder)
    (step,) = [name for name in whole if name.startswith("jit_train_step-")]
    (init,) = [name for name in whole if name.startswith("jit_init-")]
    other = max(whole.keys() - {step, init}, key=lambda name: len(whole[name]))
    damaged = {step: flipped(whole[step]), init: b"", other: whole[other][:1000]}
    for name, data in damaged.items():
        (folder / name).write_bytes(data)

    said = train(tiny, tmp_path / "cache", "second", **own)
    for name in damaged:
        assert name in said, "it is told what was damaged"
    assert "UserWarning" not in said
    assert compiled(folder).keys() == whole.keys(), "compiled again, and kept"
    for name in damaged:
        assert len((folder / name).read_bytes()) > 0.9 * len(whole[name])

    quiet = train(tiny, tmp_path / "cache", "third", **own)
    assert "damaged" not in quiet
    assert "warning" not in quiet.lower()
    assert compiled(folder).keys() == whole.keys()
    assert tiny.records("third") == tiny.records("first")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written(tiny, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    assert "not kept" in train(tiny, tmp_path / "cache", "first")


@pytest.mark.slow
def test_a_cache_where_a_file_is(tiny, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "jax").write_text("")
    assert "not kept" in train(tiny, tmp_path / "cache", "first")


def test_the_oldest_go_first(tmp_path: Path) -> None:
    from aifx.machine.compilation_cache import _prune

    for age in range(10):
        entry = tmp_path / f"jit_x-{age}-cache"
        entry.write_bytes(bytes(100))
        os.utime(entry, (1e9 - age, 1e9 - age))
    _prune(tmp_path, 1000)
    assert len(list(tmp_path.iterdir())) == 10
    _prune(tmp_path, 999)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"jit_x-{age}-cache" for age in range(4)]
