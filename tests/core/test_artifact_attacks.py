"""Artefacts among files that a stranger, another process or the user puts in their way."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from effort import seed_of_commit
from faulty_files import failing

from aifx.core import artifact as module
from aifx.core.artifact import (
    MANIFEST,
    UNFINISHED,
    Artifact,
    DamagedArtifact,
    SealedFile,
    cached,
    check_once,
    damaged_files,
    files_below,
    mark_checked,
    missing_file,
    parse_artifact,
    publish,
    read_artifact,
    read_sealed,
    seal,
    seal_files,
    sweep,
    unfinished,
)
from aifx.core.artifact_copies import copy_artifact, damaged_in_store, stored_artifact
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.files import LOCK, REMOVED, UnsafeFile
from aifx.core.stores import Store, open_store

KIND, VERSION = "toy", 1
NAMES = ("a", "parts/b", "parts/deep/c", "only/folders/d", "line\nbreak", os.fsdecode(b"not utf-8 \xff"), ".hidden")
DIGITS = "0123456789abcdef"


def make(place: Path, *, tail: bytes = b"") -> Artifact:
    """An artefact with an empty file and one for each of NAMES, whose content is its name and `tail`."""
    with unfinished(place) as folder:
        for name in NAMES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(os.fsencode(name) + tail)
        (folder / "empty").touch()
        (folder / "no files").mkdir()
        made = Artifact(KIND, VERSION, {}, seal_files(folder, files_below(folder)))
        seal(folder, made)
        publish(folder, place)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "it"


def test_any_name_of_a_file_is_sealed_and_copied(place: Path, tmp_path: Path) -> None:
    made = make(place)
    assert set(made.files) == {*NAMES, "empty"}
    assert read_artifact(place, KIND, VERSION) == made
    assert damaged_files(place, made) == []
    check_once(place, made, made.files)
    source, target = open_store(str(place)), open_store(str(tmp_path / "copies" / "it"))
    assert copy_artifact(source, made, target) == made.size_bytes
    assert stored_artifact(target, KIND, VERSION) == made
    assert damaged_in_store(target, made.every_file) == []


def test_bits_that_flip_anywhere_are_found(place: Path) -> None:
    made = make(place, tail=os.urandom(1000))
    dice = random.Random(seed_of_commit())
    for name, file in made.files.items():
        if not file.bytes:
            continue
        whole = (place / name).read_bytes()
        for at in (0, file.bytes - 1, *(dice.randrange(file.bytes) for _ in range(4))):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << dice.randrange(8)
            (place / name).write_bytes(flipped)
            assert damaged_files(place, made) == [f"{name} has other bytes than were written"]
            with pytest.raises(DamagedArtifact):
                read_sealed(place, made, name)
        (place / name).write_bytes(whole)
    assert damaged_files(place, made) == []


# Folders of the user's


def test_a_sweep_leaves_what_is_not_aifxs(tmp_path: Path) -> None:
    own = [f"it{UNFINISHED}{DIGITS}", f"{REMOVED}{DIGITS[:12]}", f"line\nbreak{UNFINISHED}{DIGITS}"]
    others = [f"notes{UNFINISHED}old", f"it{UNFINISHED}", f"it{UNFINISHED}{DIGITS}-2", f"{REMOVED}mine", UNFINISHED]
    for name in (*own, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / f".file.{DIGITS[:12]}.tmp").touch()  # of `replace_file`
    (tmp_path / f"file{UNFINISHED}{DIGITS}").touch()
    (tmp_path / f"link{UNFINISHED}{DIGITS}").symlink_to(tmp_path / others[0])
    expected = {*others, f"file{UNFINISHED}{DIGITS}", f"link{UNFINISHED}{DIGITS}"}
    sweep(tmp_path)
    assert set(os.listdir(tmp_path)) == expected
    assert {tuple(os.listdir(tmp_path / name)) for name in others} == {("file",)}


def test_a_sweep_leaves_unfinished_folders_of_living_processes(tmp_path: Path) -> None:
    with unfinished(tmp_path / "it") as folder:
        sweep(tmp_path)
        assert folder.is_dir()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("call", ["mkdir", "chmod"])
def test_a_new_folder_that_another_process_sweeps_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real, swept = getattr(Path, call), list[Path]()

    def sweep_after(path: Path, *arguments: Any, **settings: Any) -> None:
        real(path, *arguments, **settings)
        if UNFINISHED in path.name and not swept:
            swept.append(path)
            sweep(path.parent)
            assert not path.exists()

    monkeypatch.setattr(Path, call, sweep_after)
    with unfinished(place) as folder:
        assert swept not in ([], [folder])
        assert (folder / LOCK).exists()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_the_folder_has_the_mode_of_any_folder_and_no_lock(place: Path, umask: int, mode: int) -> None:
    place.parent.mkdir()
    place.parent.chmod(0o2775)  # a root that a group shares
    before = os.umask(umask)
    try:
        make(place)
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o2000 | mode
    assert stat.S_IMODE((place / "a").stat().st_mode) == mode & 0o666
    assert not (place / LOCK).exists()
    assert not [path for path in files_below(place) if path.name == LOCK]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_a_full_disk_is_not_a_file_system_without_locks(place: Path, number: int) -> None:
    with failing(place.parent, number=number) as calls, unfinished(place):
        pass
    lock = next(at for at, call in enumerate(calls.made) if call.startswith("open") and call.endswith(LOCK))
    with (
        failing(place.parent, lock, number=number),
        pytest.raises(OSError, match=os.strerror(number)) as refused,
        unfinished(place),
    ):
        pass
    assert str(refused.value.filename).endswith(LOCK)
    assert not os.listdir(place.parent)


def test_nobody_sweeps_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with unfinished(tmp_path / "it") as folder:
        sweep(tmp_path)
        assert folder.is_dir()
    make(tmp_path / "it")
    assert os.listdir(tmp_path) == ["it"]


# Writing


def plant_link(path: Path) -> None:
    path.symlink_to(path.with_name("a"))


def plant_linked_folder(path: Path) -> None:
    path.symlink_to(path.parent / "parts")


@pytest.mark.parametrize("plant", [plant_link, plant_linked_folder, os.mkfifo])
def test_links_and_fifos_are_not_sealed(place: Path, plant: Callable[[Path], None]) -> None:
    with unfinished(place) as folder:
        (folder / "parts").mkdir()
        (folder / "parts" / "b").touch()
        (folder / "a").write_text("a")
        plant(folder / "x")
        with pytest.raises(UnsafeFile, match="/x is a"):
            seal_files(folder, files_below(folder))
        with pytest.raises(UnsafeFile, match="/x is a"):
            seal_files(folder, [folder / "x" if plant is not plant_linked_folder else folder / "x" / "b"])


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files_below(tmp_path / "none")


def test_a_file_that_grows_after_it_was_sealed_is_found(place: Path) -> None:
    with unfinished(place) as folder:
        (folder / "a").write_text("a")
        made = Artifact(KIND, VERSION, {}, seal_files(folder, [folder / "a"]))
        (folder / "a").write_text("ab")
        with pytest.raises(DamagedArtifact) as refused:
            seal(folder, made)
        assert refused.value.why == "a has 2 bytes and had 1"
        assert not (folder / MANIFEST).exists()


def test_a_manifest_that_aifx_would_not_read_is_not_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DOCUMENT_LIMIT", 500)
    with pytest.raises(AifxError) as refused:
        make(place)
    assert not isinstance(refused.value, DamagedArtifact)
    assert not os.listdir(place.parent)


def test_everything_is_on_the_disk_before_what_names_it(tmp_path: Path) -> None:
    place = tmp_path / "new" / "newer" / "it"
    with failing(tmp_path) as calls:
        make(place)
    made = [
        call.replace(call.split(UNFINISHED)[1][: len(DIGITS)], "") if UNFINISHED in call else call
        for call in calls.made
    ]
    folder = f"{place}{UNFINISHED}"
    manifest = next(at for at, call in enumerate(made) if call.startswith(f"open {folder}/.{MANIFEST}."))
    for name in (*NAMES, "empty", "parts", "parts/deep", "only", "only/folders", "no files"):
        assert f"fsync {folder}/{name}" in made[:manifest]
    assert f"fsync {folder}" in made[:manifest]
    written = made.index(next(call for call in made if call.startswith(f"fsync {folder}/.{MANIFEST}.")))
    named = made.index(f"replace {folder}/{MANIFEST}")
    synced = made.index(f"fsync {folder}", named)
    placed = made.index(f"rename {place}")
    assert manifest < written < named < synced < placed < made.index(f"fsync {place.parent}", placed)
    for parent in (tmp_path, tmp_path / "new"):  # the names of the new folders above it
        assert f"fsync {parent}" in made[:placed]


# Manifests of strangers


@pytest.mark.parametrize("name", ["a//b", "./a", "a/", "a/.", "a\0b", "", ".", "..", f"./{MANIFEST}", "//a"])
def test_a_name_is_that_of_a_file_in_it(name: str) -> None:
    data = Artifact(KIND, VERSION, {}, {name: SealedFile(1, "0" * 64)}).encode()
    with pytest.raises(DamagedArtifact):
        parse_artifact(data, "it", KIND, VERSION)


@pytest.mark.parametrize(
    ("size", "sha256"), [("1", "0" * 64), (True, "0" * 64), (-1, "0" * 64), (1, "0" * 63), (1, "Z" * 64), (1, None)]
)
def test_a_size_and_a_digest_are_such(size: Any, sha256: Any) -> None:
    data = Artifact(KIND, VERSION, {}, {"a": SealedFile(size, sha256)}).encode()
    with pytest.raises(DamagedArtifact):
        parse_artifact(data, "it", KIND, VERSION)


def test_a_file_is_in_one_list() -> None:
    """Otherwise the digest of the artefact, which others refer to, would not be about the file that is compared."""
    good, evil = SealedFile(1, "0" * 64), SealedFile(1, "1" * 64)
    data = Artifact(KIND, VERSION, {}, {"a": good}, {"a": evil}).encode()
    with pytest.raises(DamagedArtifact):
        parse_artifact(data, "it", KIND, VERSION)


def test_content_and_notes_are_objects() -> None:
    for fields in ({"content": [1]}, {"notes": "x"}):
        data = Artifact(**{"kind": KIND, "version": VERSION, "content": {}, "files": {}, **fields}).encode()
        with pytest.raises(DamagedArtifact):
            parse_artifact(data, "it", KIND, VERSION)


def swap_for_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def swap_for_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swap_for_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SWAPS = [swap_for_link, swap_for_fifo, swap_for_folder]


@pytest.mark.parametrize("swap", SWAPS)
def test_what_is_no_file_is_damaged(place: Path, tmp_path: Path, swap: Callable[[Path], None]) -> None:
    made = make(place)
    source = open_store(str(place))
    swap(place / "empty")
    assert missing_file(place, made.every_file) == "empty is not a regular file"
    assert len(damaged_files(place, made)) == len(damaged_in_store(source, made.every_file)) == 1
    assert damaged_files(place, made)[0].startswith("empty is a ")
    with pytest.raises(DamagedArtifact):
        check_once(place, made, made.files)
    with pytest.raises(DamagedArtifact) as found:
        read_sealed(place, made, "empty")
    assert found.value.why.startswith("empty is a ")
    with pytest.raises(DamagedArtifact):
        copy_artifact(source, made, open_store(str(tmp_path / "there")))
    assert not (tmp_path / "there" / MANIFEST).exists()
    swap(place / MANIFEST)
    with pytest.raises(DamagedArtifact):
        read_artifact(place, KIND, VERSION)
    with pytest.raises(DamagedArtifact):
        stored_artifact(source, KIND, VERSION)


def test_a_link_in_place_of_a_folder_is_damage(place: Path) -> None:
    made = make(place)
    swap_for_link(place / "parts")
    assert damaged_files(place, made) == ["parts is a link to elsewhere"] * 2
    with pytest.raises(DamagedArtifact):
        read_sealed(place, made, "parts/b")


@pytest.mark.parametrize("name", ["a", "parts"])
def test_a_copy_goes_through_no_link(place: Path, tmp_path: Path, name: str) -> None:
    made = make(place)
    there, outside = tmp_path / "there", tmp_path / "outside"
    there.mkdir()
    outside.mkdir() if name == "parts" else outside.write_text("mine")
    (there / name).symlink_to(outside)
    if name == "parts":
        with pytest.raises(UnsafeFile):
            copy_artifact(open_store(str(place)), made, open_store(str(there)))
        assert not os.listdir(outside)
        assert not (there / MANIFEST).exists()
    else:
        copy_artifact(open_store(str(place)), made, open_store(str(there)))
        assert outside.read_text() == "mine"
        assert damaged_files(there, made) == []


# Comparing once


def wait_for_a_later_time(path: Path) -> None:
    """File systems count time in steps of milliseconds."""
    probe = path.with_name("probe")
    while not probe.exists() or probe.stat().st_ctime_ns == path.stat().st_ctime_ns:
        probe.write_text("")
    probe.unlink()


def test_a_change_whose_time_was_set_back_is_found(place: Path) -> None:
    made = make(place)
    check_once(place, made, made.files)
    before = (place / "a").stat()
    wait_for_a_later_time(place / "a")
    with (place / "a").open("r+b") as file:
        file.write(b"b")
    os.utime(place / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (place / "a").stat()
    assert (after.st_size, after.st_ino, after.st_mtime_ns) == (before.st_size, before.st_ino, before.st_mtime_ns)
    with pytest.raises(DamagedArtifact):
        check_once(place, made, made.files)


def test_a_change_while_it_is_compared_is_found_next_time(place: Path) -> None:
    made = make(place)

    class ChangingReporter:
        def advance(self, amount: float) -> None:
            wait_for_a_later_time(place / "a")
            (place / "a").write_bytes(b"b")

    check_once(place, made, ["a"], ChangingReporter())  # type: ignore[arg-type]
    with pytest.raises(DamagedArtifact):
        check_once(place, made, ["a"])


def test_a_cache_that_cannot_be_written_costs_time_only(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(place)
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()
    check_once(place, made, made.files)
    mark_checked(place, made, made.files)


# Caches


def write(folder: Path) -> tuple[dict[str, int], Any]:
    (folder / "values").write_bytes(b"good")
    return {}, seal_files(folder, [folder / "values"])


def opened(folder: Path, artifact: Artifact) -> bytes:
    return read_sealed(folder, artifact, "values")


def put_file(place: Path) -> None:
    place.write_text("a file")


def put_dangling_link(place: Path) -> None:
    place.symlink_to("nowhere")


def put_linked_folder(place: Path) -> None:
    (place.parent / "mine").mkdir()
    (place.parent / "mine" / "file").touch()
    place.symlink_to("mine")


def put_another_format(place: Path) -> None:
    place.mkdir()
    (place / MANIFEST).write_bytes(Artifact("other", 7, {}, {}).encode())


@pytest.mark.parametrize("put", [put_file, put_dangling_link, put_linked_folder, put_another_format, Path.mkdir])
def test_whatever_is_in_the_place_of_a_cache_gives_way(place: Path, put: Callable[[Path], None]) -> None:
    place.parent.mkdir()
    put(place)
    warned = list[str]()
    assert cached(place, KIND, VERSION, write, opened, warned.append) == b"good"
    assert len(warned) == 1
    mine = {"mine"} if put is put_linked_folder else set()
    assert set(os.listdir(place.parent)) == {"it", *mine}
    assert not mine or os.listdir(place.parent / "mine") == ["file"]


def test_a_machine_that_refuses_to_read_does_not_damage_a_cache(place: Path) -> None:
    def refused(folder: Path, artifact: Artifact) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(folder / "values"))

    for _ in range(2):  # it is made, and it is there
        with pytest.raises(OSError, match="Too many open files"):
            cached(place, KIND, VERSION, write, refused, pytest.fail)
        found = place.stat().st_ino
        assert cached(place, KIND, VERSION, write, opened, pytest.fail) == b"good"
        assert place.stat().st_ino == found


def test_what_another_process_put_in_place_of_a_damaged_one_stays(place: Path) -> None:
    cached(place, KIND, VERSION, write, opened, pytest.fail)
    calls, others = list[int](), list[int]()

    def raced(folder: Path, artifact: Artifact) -> bytes:
        calls.append(folder.stat().st_ino)
        if len(calls) == 2:  # when this process has seen that its own cannot go there
            place.rename(place.with_name("damaged"))
            cached(place, KIND, VERSION, write, opened, pytest.fail)
            others.append(place.stat().st_ino)
        if len(calls) < 3:
            raise DamagedArtifact(folder, "values")
        return opened(folder, artifact)

    assert cached(place, KIND, VERSION, write, raced, lambda _: None) == b"good"
    assert [place.stat().st_ino] == others == calls[2:]
    assert sorted(os.listdir(place.parent)) == ["damaged", "it"]


# Copies


def test_an_artefact_that_is_replaced_loses_its_manifest_first(place: Path, tmp_path: Path) -> None:
    made, there = make(place, tail=b"new"), tmp_path / "there"
    make(there, tail=b"old")
    (place / NAMES[-1]).write_bytes(b"damaged")
    with pytest.raises(DamagedArtifact):
        copy_artifact(open_store(str(place)), made, open_store(str(there)))
    assert not (there / MANIFEST).exists()


def test_a_copy_is_on_the_disk_before_its_manifest(place: Path, tmp_path: Path) -> None:
    made, there = make(place), tmp_path / "new" / "there"
    there.mkdir(parents=True)
    (there / "a").write_text("a")  # of a copy that was killed before it was on the disk
    with failing(there) as calls:
        copy_artifact(open_store(str(place)), made, open_store(str(there)))
    manifest = next(at for at, call in enumerate(calls.made) if call.startswith(f"open {there}/.{MANIFEST}."))
    for name in ("a", "", "parts", "parts/deep", "only", "only/folders"):
        assert f"fsync {there / name}" in calls.made[:manifest]
    for name in set(made.files) - {"a"}:
        temporary = f"fsync {(there / name).parent}/.{Path(name).name}."
        assert any(call.startswith(temporary) for call in calls.made[:manifest]), name


class Losing(Store):
    """A store that loses the last byte of what it gets."""

    def write(self, name: str, blocks: Iterator[bytes]) -> None:
        super().write(name, iter([b"".join(blocks)[:-1]]))


def test_a_copy_in_a_remote_store_is_compared(place: Path, tmp_path: Path) -> None:
    made, source, remote = make(place), open_store(str(place)), open_store(f"memory://{tmp_path.name}/it")
    assert stored_artifact(remote, KIND, VERSION) is None
    with pytest.raises(EnvironmentFault, match="changed on the way"):
        copy_artifact(source, made, Losing(remote.url, remote.fs, remote.path))
    assert stored_artifact(remote, KIND, VERSION) is None
    copy_artifact(source, made, remote)
    assert stored_artifact(remote, KIND, VERSION) == made
    assert damaged_in_store(remote, made.every_file) == []
    remote.write("a", iter([b"b"]))
    remote.write("empty", iter([b"x"]))
    remote.remove("parts/b")
    assert {why.split()[0] for why in damaged_in_store(remote, made.every_file)} == {"a", "empty", "parts/b"}
    with pytest.raises(DamagedArtifact):
        copy_artifact(remote, made, open_store(str(tmp_path / "there")))
    assert not (tmp_path / "there" / MANIFEST).exists()
