from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.manifest import Damaged, read_manifest
from aifx.checkpoint.stored import StoredArrays
from aifx.config.sections import CheckpointSection

SECTION = CheckpointSection(asynchronous=False, keep_last=3)


def state_of(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    params = {str(i): {"w": jnp.asarray(rng.standard_normal((64, 96), np.float32)), "b": jnp.ones(3)} for i in range(4)}
    return {"step": jnp.int32(step), "params": params}


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(directory, SECTION)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step), host={"tokens": 1234})
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def test_no_flipped_bit_is_restored(directory: Path) -> None:
    """In every file of a checkpoint: what is restored is what was saved, or it is refused."""
    rng = np.random.default_rng(0)
    checkpoints = Checkpoints(directory, SECTION)
    found: dict[str, int] = {}
    for path in files_of(directory / "3"):
        original = path.read_bytes()
        for bit in rng.integers(0, len(original) * 8, 12):
            flip(path, int(bit))
            try:
                state, host = checkpoints.restore(3, ABSTRACT)
            except Damaged:
                found[path.name] = found.get(path.name, 0) + 1
            else:
                assert bits(state) == bits(state_of(3)), (path, bit)
                assert host == {"tokens": 1234}
            path.write_bytes(original)
    largest = max(files_of(directory / "3"), key=lambda p: p.stat().st_size)
    assert found["manifest.json"] == 12
    assert found[largest.name] >= 11  # a few bytes of it are OCDBT's own, and need not matter
    checkpoints.restore(3, ABSTRACT)


def test_a_flipped_bit_in_an_array_is_silent_to_tensorstore(directory: Path) -> None:
    """This is the reason for digests. When it fails, TensorStore finds such damage, and they may be reconsidered."""
    checkpoints = Checkpoints(directory, SECTION)
    path = max(files_of(directory / "3"), key=lambda p: p.stat().st_size)
    flip(path, path.stat().st_size * 4)
    manifest = read_manifest(directory / "3")
    stored = StoredArrays(directory / "3", manifest.arrays)
    for name, entry in manifest.arrays.items():
        stored.read(name, tuple(slice(0, size) for size in entry.shape)).result()
    verification = checkpoints.verify(3)
    assert len(verification.damaged) == 1
    with pytest.raises(Damaged, match="damaged") as caught:
        checkpoints.restore(3, ABSTRACT)
    assert verification.damaged[0] in caught.value.why


def test_a_damaged_newest_is_set_aside(directory: Path, logged: list[str]) -> None:
    path = max(files_of(directory / "3"), key=lambda p: p.stat().st_size)
    flip(path, path.stat().st_size * 4)
    found = Checkpoints(directory, SECTION).latest_good(ABSTRACT)
    assert found is not None
    assert found.step == 2
    assert int(found.state["step"]) == 2
    assert "step 3 is damaged" in logged[0]
    assert "3.damaged" in logged[0]
    assert sorted(p.name for p in directory.iterdir()) == ["1", "2", "3.damaged"]


@pytest.mark.parametrize("how", ["manifest", "arrays", "truncated", "emptied", "all"])
def test_missing_and_torn_files(directory: Path, how: str) -> None:
    folder = directory / "3"
    largest = max(files_of(folder), key=lambda p: p.stat().st_size)
    match how:
        case "manifest":
            (folder / "manifest.json").unlink()
        case "arrays":
            largest.unlink()
        case "truncated":
            largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        case "emptied":
            for path in files_of(folder):
                path.write_bytes(b"")
        case "all":
            shutil.rmtree(folder)
            folder.mkdir()
    found = Checkpoints(directory, SECTION).latest_good(ABSTRACT)
    assert found is not None
    assert found.step == 2
    assert bits(found.state) == bits(state_of(2))


@pytest.mark.parametrize("how", ["copied", "swapped", "renamed"])
def test_a_checkpoint_under_another_step_is_damaged(directory: Path, how: str, logged: list[str]) -> None:
    """Every byte is as it was saved, and the folder's name is not."""
    damaged, good = {"copied": ([3], 2), "swapped": ([2, 3], 1), "renamed": ([7], 2)}[how]
    match how:
        case "copied":
            shutil.rmtree(directory / "3")
            shutil.copytree(directory / "1", directory / "3")
        case "swapped":
            (directory / "3").rename(directory / "aside")
            (directory / "2").rename(directory / "3")
            (directory / "aside").rename(directory / "2")
        case "renamed":
            (directory / "3").rename(directory / "7")
    checkpoints = Checkpoints(directory, SECTION)
    assert [i.step for i in checkpoints.infos() if i.damaged] == damaged
    with pytest.raises(Damaged, match=r"checkpoint \S+ is damaged"):
        checkpoints.restore(damaged[-1], ABSTRACT)
    found = checkpoints.latest_good(ABSTRACT)
    assert found is not None
    assert (found.step, int(found.state["step"])) == (good, good)
    assert "saved as the checkpoint" in logged[0]


def test_a_folder_with_a_padded_number_is_no_checkpoint(directory: Path) -> None:
    shutil.copytree(directory / "1", directory / "0004")
    assert Checkpoints(directory, SECTION).steps() == [1, 2, 3]


def test_all_damaged_is_none_and_said(directory: Path, logged: list[str]) -> None:
    for step in (1, 2, 3):
        (directory / str(step) / "manifest.json").write_text("{}")
    assert Checkpoints(directory, SECTION).latest_good(ABSTRACT) is None
    assert len(logged) == 3


def test_a_second_damage_of_a_step_finds_a_name(directory: Path) -> None:
    shutil.copytree(directory / "3", directory / "3.damaged")
    (directory / "3" / "manifest.json").unlink()
    found = Checkpoints(directory, SECTION).latest_good(ABSTRACT)
    assert found is not None
    assert (directory / "3.damaged-2").is_dir()


def test_a_reader_sets_nothing_aside(directory: Path) -> None:
    (directory / "3" / "manifest.json").unlink()
    with pytest.raises(Damaged):
        Checkpoints(directory, SECTION).restore(3, ABSTRACT)
    assert (directory / "3").is_dir()


def test_a_step_that_is_a_link_leaves_and_its_target_stays(directory: Path, tmp_path: Path) -> None:
    (directory / "1").rename(tmp_path / "elsewhere")
    (directory / "1").symlink_to(tmp_path / "elsewhere")
    checkpoints = Checkpoints(directory, SECTION)
    for step in (4, 5):
        checkpoints.save(step, state_of(step), host={})
    assert checkpoints.steps() == [3, 4, 5]
    assert (tmp_path / "elsewhere/manifest.json").is_file()
    assert not list(directory.glob("*.unfinished"))
