"""The compilation cache: everything is kept, what is damaged is made anew once, and nothing is said twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import warm


def train(tiny, cache: Path, run: str) -> str:
    args = ["train", "--run", run, "--set", "train.num_steps=3", "--json"]
    done = warm.run(args, tiny.root, {**os.environ, "AIFX_CACHE_DIR": str(cache)})
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(autouse=True)
def _own_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)


@pytest.fixture
def trained(tiny, tmp_path: Path) -> Path:
    """The cache that the run "first" filled. Each test's own: JAX 0.10.2 finds no entry again from another folder."""
    train(tiny, tmp_path / "cache", "first")
    return tmp_path / "cache"


def compiled(cache: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (cache / "jax").iterdir() if p.name.endswith("-cache")}


@pytest.mark.parametrize("damage", ["torn", "empty", "flipped"])
def test_a_damaged_entry(tiny, trained: Path, damage: str) -> None:
    cache = trained
    whole = compiled(cache)
    (name,) = [n for n in whole if n.startswith("jit_step-")]
    data = bytearray(whole[name])
    data[len(data) // 2] ^= 0x10
    (cache / "jax" / name).write_bytes({"torn": whole[name][:1000], "empty": b"", "flipped": bytes(data)}[damage])

    said = train(tiny, cache, "second")
    assert f"{name}" in said, "it is told what was damaged"
    assert "UserWarning" not in said
    assert compiled(cache).keys() == whole.keys(), "compiled again, and kept"
    assert len((cache / "jax" / name).read_bytes()) > 0.9 * len(whole[name])

    quiet = train(tiny, cache, "third")
    assert "damaged" not in quiet
    assert "warning" not in quiet.lower()
    assert tiny.records("third") == tiny.records("first")


def test_a_folder_of_ones_own_is_kept_whole_too(tiny, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    env = {"JAX_COMPILATION_CACHE_DIR": str(own), "AIFX_CACHE_DIR": str(tmp_path / "cache")}

    def train_there(run: str) -> str:
        code, _, err = tiny.command("train", "--run", run, "--set", "train.num_steps=3", "--json", env=env)
        assert code == 0, err
        return err

    train_there("first")
    (entry,) = own.glob("jit_step-*-cache")
    assert not (tmp_path / "cache" / "jax").exists()
    entry.write_bytes(entry.read_bytes()[:1000])
    assert entry.name in train_there("second")
    assert entry.stat().st_size > 1000
    assert "damaged" not in train_there("third")


def test_small_programs_are_kept(tiny, trained: Path) -> None:
    kept = compiled(trained)
    assert any(n.startswith("jit_step-") for n in kept)
    assert any(n.startswith("jit_init-") for n in kept)
    train(tiny, trained, "second")
    assert compiled(trained).keys() == kept.keys()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written(tiny, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    assert "not kept" in train(tiny, tmp_path / "cache", "first")


def test_a_cache_where_a_file_is(tiny, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "jax").write_text("")
    assert "not kept" in train(tiny, tmp_path / "cache", "first")


def test_the_oldest_go_first(tmp_path: Path) -> None:
    from aifx.parallel.compilation_cache import _prune

    for age in range(10):
        entry = tmp_path / f"jit_x-{age}-cache"
        entry.write_bytes(bytes(100))
        os.utime(entry, (1e9 - age, 1e9 - age))
    _prune(tmp_path, 1000)
    assert len(list(tmp_path.iterdir())) == 10
    _prune(tmp_path, 999)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"jit_x-{age}-cache" for age in range(4)]
