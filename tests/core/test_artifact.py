"""An artefact is found damaged whatever byte of it changes, and one that was copied is the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aifx.core.artifact import (
    BLOCKS,
    MANIFEST,
    UNFINISHED,
    Artifact,
    DamagedArtifact,
    cached,
    check_once,
    damaged_files,
    files_below,
    missing_file,
    publish,
    read_artifact,
    read_sealed,
    seal,
    seal_files,
    unfinished,
    writable_folder,
)
from aifx.core.artifact_copies import copy_artifact, damaged_in_store, stored_artifact
from aifx.core.digests import BLOCK_BYTES, sha256_of
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.project import cache_path
from aifx.core.stores import open_store

KIND, VERSION = "toy", 3
BIG = os.urandom(2 * BLOCK_BYTES + 5)


def make(place: Path, **notes: Any) -> Artifact:
    with unfinished(place) as folder:
        (folder / "parts").mkdir()
        (folder / "parts" / "big").write_bytes(BIG)
        (folder / "small.txt").write_text("ä")
        (folder / "about.md").write_text("what it is")
        files = seal_files(folder, [folder / "parts" / "big"], blocks=True)
        files |= seal_files(folder, [folder / "small.txt"])
        described = seal_files(folder, [folder / "about.md"])
        made = Artifact(KIND, VERSION, {"rows": 7, "share": 0.1, "é": None}, files, described, notes)
        seal(folder, made)
        publish(folder, place)
    return made


def test_it_is_read_as_it_was_sealed(tmp_path: Path) -> None:
    place = tmp_path / "it"
    made = make(place, name="a")
    found = read_artifact(place, KIND, VERSION)
    assert found == made
    assert found.digest == made.digest
    assert found.files["parts/big"].sha256 == sha256_of(BIG)
    blocks = read_sealed(place, found, f"parts/big{BLOCKS}")
    assert blocks.hex() == "".join(sha256_of(BIG[at : at + BLOCK_BYTES]) for at in range(0, len(BIG), BLOCK_BYTES))
    assert [path.name for path in files_below(place)] == ["about.md", "big", f"big{BLOCKS}", "small.txt"]
    assert missing_file(place, found.every_file) is None
    assert damaged_files(place, found) == []
    assert read_sealed(place, found, "parts/big", limit=len(BIG)) == BIG
    with pytest.raises(DamagedArtifact):
        read_sealed(place, found, "parts/big", limit=len(BIG) - 1)


def test_names_and_descriptions_are_not_in_the_digest(tmp_path: Path) -> None:
    assert make(tmp_path / "a", name="a").digest == make(tmp_path / "b", name="b").digest


def test_what_killed_writers_of_the_same_place_left_is_deleted_and_nothing_beside_it(tmp_path: Path) -> None:
    digits = "0" * 16
    names = [f"it{UNFINISHED}", f"it{UNFINISHED}20241130", f"it{UNFINISHED}20241130093000", ".removed-pictures"]
    names += [f"other{UNFINISHED}{digits}", f"an it{UNFINISHED}{digits}", f".removed-{digits[:12]}"]
    killed = f"it{UNFINISHED}{digits}"
    for name in (*names, killed):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("")
    file = f".mine.{digits[:12]}.tmp"
    (tmp_path / file).write_text("")
    with unfinished(tmp_path / "it") as slow:
        make(tmp_path / "it")
        assert slow.is_dir()
    assert sorted(os.listdir(tmp_path)) == sorted([*names, file, "it"])
    assert all((tmp_path / name / "mine").exists() for name in names)


def test_caches_delete_what_killed_writers_of_others_left(tmp_path: Path) -> None:
    for name in (f"other{UNFINISHED}{'0' * 16}", f".removed-{'0' * 12}"):
        (tmp_path / name).mkdir()
    assert cached(tmp_path / "it", KIND, VERSION, lambda _: ({}, {}), lambda *_: 1, lambda _: None) == 1
    assert os.listdir(tmp_path) == ["it"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o177, 0o700)])
def test_it_has_the_mode_of_a_new_folder_and_no_lock(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        make(tmp_path / "it")
    finally:
        os.umask(before)
    assert (tmp_path / "it").stat().st_mode & 0o777 == mode
    assert ".lock" not in os.listdir(tmp_path / "it")


def test_the_cache_can_be_elsewhere_and_another_folder_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    (tmp_path / "cache").write_text("")
    for folder, hint in ((tmp_path / "file", f"ls -ld {tmp_path}/file"), (cache_path("x"), "AIFX_CACHE_DIR=")):
        with pytest.raises(EnvironmentFault) as refused, writable_folder(folder):
            pass
        assert refused.value.hint.startswith(hint)


def test_any_other_byte_of_the_manifest_is_found(tmp_path: Path) -> None:
    place = tmp_path / "it"
    make(place)
    data = (place / MANIFEST).read_bytes()
    for at in range(0, len(data), 7):
        (place / MANIFEST).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(DamagedArtifact):
            read_artifact(place, KIND, VERSION)
    (place / MANIFEST).write_bytes(data[:-1])
    with pytest.raises(DamagedArtifact):
        read_artifact(place, KIND, VERSION)


def test_another_kind_or_version_is_refused_and_not_damaged(tmp_path: Path) -> None:
    make(tmp_path / "it")
    for kind, version in (("other", VERSION), (KIND, VERSION + 1)):
        with pytest.raises(AifxError) as refused:
            read_artifact(tmp_path / "it", kind, version)
        assert not isinstance(refused.value, DamagedArtifact)


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    place = tmp_path / "it"
    made = make(place)
    check_once(place, made, made.files)
    big = place / "parts" / "big"
    big.write_bytes(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    assert missing_file(place, made.every_file) is None
    assert damaged_files(place, made) == ["parts/big has other bytes than were written"]
    with pytest.raises(DamagedArtifact):
        check_once(place, made, made.files)
    big.unlink()
    big.symlink_to(place / "small.txt")
    assert len(damaged_files(place, made)) == 1
    big.unlink()
    assert missing_file(place, made.every_file) == "parts/big is missing"


def test_a_manifest_names_no_file_outside(tmp_path: Path) -> None:
    place = tmp_path / "it"
    made = make(place)
    for name in ("../x", "/etc/passwd", "a/../../x", MANIFEST):
        (place / MANIFEST).write_bytes(Artifact(KIND, VERSION, {}, {name: made.files["small.txt"]}).encode())
        with pytest.raises(DamagedArtifact):
            read_artifact(place, KIND, VERSION)


def test_a_copy_goes_on_and_a_damaged_source_is_found(tmp_path: Path) -> None:
    made = make(tmp_path / "it")
    source, target = open_store(str(tmp_path / "it")), open_store(str(tmp_path / "there"))
    assert stored_artifact(target, KIND, VERSION) is None
    assert copy_artifact(source, made, target) == made.size_bytes
    assert stored_artifact(target, KIND, VERSION) == made
    assert damaged_in_store(target, made.every_file) == []
    (tmp_path / "there" / "small.txt").write_text("x")
    assert damaged_in_store(target, made.every_file) == ["small.txt has 1 bytes and had 2"]
    assert copy_artifact(source, made, target) == 2
    (tmp_path / "it" / "small.txt").write_text("ö")
    with pytest.raises(DamagedArtifact):
        copy_artifact(source, made, open_store(str(tmp_path / "elsewhere")))
    assert not (tmp_path / "elsewhere" / MANIFEST).exists()


def test_a_damaged_one_in_the_cache_is_made_again(tmp_path: Path) -> None:
    place, warned = tmp_path / "caches" / "it", list[str]()

    def write(folder: Path) -> tuple[dict[str, int], Any]:
        (folder / "values").write_bytes(BIG)
        return {"length": len(BIG)}, seal_files(folder, [folder / "values"])

    def opened(folder: Path, artifact: Artifact) -> bytes:
        return read_sealed(folder, artifact, "values")

    for damage in (None, b"", BIG[:-1] + b"x", None):
        if damage is not None:
            (place / "values").write_bytes(damage)
        assert cached(place, KIND, VERSION, write, opened, warned.append) == BIG
    assert len(warned) == 2
    (place / MANIFEST).unlink()
    assert cached(place, KIND, VERSION, write, opened, warned.append) == BIG
    assert len(warned) == 3
    assert os.listdir(place.parent) == ["it"]
