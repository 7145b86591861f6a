"""A program that is killed before and after each change that it makes while it writes an artefact.

    python killed_artifact.py WRITER FOLDER

After each kill, the place has no artefact or a whole one. Asking again makes a whole one, with and without a sweep
before it, and leaves nothing unfinished. The program prints the number of kills.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from faulty_files import forked, kill_at_each_change

from aifx.core.artifact import (
    MANIFEST,
    UNFINISHED,
    Artifact,
    Files,
    SealedFile,
    cached,
    damaged_files,
    publish,
    read_artifact,
    read_sealed,
    seal,
    seal_files,
    sweep,
    unfinished,
)
from aifx.core.artifact_copies import copy_artifact
from aifx.core.files import LOCK
from aifx.core.os_errors import naming
from aifx.core.stores import open_store

KIND, VERSION = "toy", 1
PLACE = "folder/it"
SOURCE = "source"


def write_files(folder: Path, names: tuple[str, ...], tail: str = "") -> dict[str, SealedFile]:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        with naming(folder / name):
            (folder / name).write_text(name + tail)
    return seal_files(folder, [folder / name for name in names], blocks=True)


def make_at(place: Path, tail: str = "") -> None:
    """One writer."""
    if (place / MANIFEST).exists():
        return
    with unfinished(place) as folder:
        files = write_files(folder, ("a", "parts/b"), tail)
        seal(folder, Artifact(KIND, VERSION, {}, files))
        publish(folder, place)


def one(root: Path) -> None:
    make_at(root / PLACE)


def after_a_kill(root: Path) -> None:
    """A killed writer of the same place left its folder."""
    make_at(root / PLACE)


def several(root: Path, unwatched: str) -> None:
    """Two processes write and seal parts; this one, which seals the whole, ends as they do.

    Args:
        unwatched: the parts whose changes do not count.
    """
    place = root / PLACE
    if (place / MANIFEST).exists():
        return

    def write_part(folder: Path, part: str) -> None:
        if part in unwatched:
            mock.patch.stopall()
        files = write_files(folder, (f"{part}/a", f"{part}/b"))
        (root / part).write_text(json.dumps({name: [file.bytes, file.sha256] for name, file in files.items()}))

    with unfinished(place) as folder:
        files: dict[str, SealedFile] = {}
        for part in ("0", "1"):
            if forked(lambda part=part: write_part(folder, part)):
                os.kill(os.getpid(), signal.SIGKILL)
            files |= {name: SealedFile(*sealed) for name, sealed in json.loads((root / part).read_text()).items()}
        seal(folder, Artifact(KIND, VERSION, {}, files))
        publish(folder, place)


def parts_of_several(root: Path) -> None:
    """Killed while the second part is written."""
    several(root, "0")


def whole_of_several(root: Path) -> None:
    """Killed while the whole is sealed."""
    several(root, "01")


def cache(root: Path) -> None:
    def make(folder: Path) -> tuple[dict[str, Any], Files]:
        return {}, write_files(folder, ("a", "parts/b"))

    def opened(folder: Path, artifact: Artifact) -> bytes:
        return read_sealed(folder, artifact, "a")

    assert cached(root / PLACE, KIND, VERSION, make, opened, lambda _: None) == b"a"


def damaged_cache(root: Path) -> None:
    """There is one, which is damaged."""
    cache(root)


def copy(root: Path) -> None:
    source = open_store(str(root / SOURCE))
    copy_artifact(source, read_artifact(root / SOURCE, KIND, VERSION), open_store(str(root / PLACE)))


def resumed_copy(root: Path) -> None:
    """A part of it is there."""
    copy(root)


def replacing_copy(root: Path) -> None:
    """Another artefact is there."""
    copy(root)


WRITERS: dict[str, Callable[[Path], None]] = {
    writer.__name__: writer
    for writer in (
        one,
        after_a_kill,
        parts_of_several,
        whole_of_several,
        cache,
        damaged_cache,
        copy,
        resumed_copy,
        replacing_copy,
    )
}


def prepare(writer: str, root: Path) -> None:
    place = root / PLACE
    root.mkdir()
    if "copy" in writer:
        make_at(root / SOURCE)
    if writer == "after_a_kill":
        left = place.with_name(f"{place.name}{UNFINISHED}{'0' * 16}")
        left.mkdir(parents=True)
        for name in ("a", "b", LOCK):
            (left / name).touch()
    if writer == "damaged_cache":
        cache(root)
        (place / "a").write_text("x")
    if writer == "replacing_copy":
        make_at(place, tail="other")
    if writer == "resumed_copy":
        shutil.copytree(root / SOURCE, place)
        (place / MANIFEST).unlink()
        (place / "a").write_text("half")


def content(root: Path) -> dict[str, bytes]:
    """All files but those by which parts are handed over, and a lock that a kill right after the rename leaves."""
    found = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in ("0", "1", f"{PLACE}/{LOCK}")}


def is_whole(writer: str, place: Path) -> bool:
    """Whether there is an artefact, which is whole. Raises if it is damaged."""
    if not (place / MANIFEST).exists():
        return False
    damaged = damaged_files(place, read_artifact(place, KIND, VERSION))
    if writer == "damaged_cache" and damaged == ["a has other bytes than were written"]:
        return False  # it is the one that was there
    assert not damaged, damaged
    return True


def check(writer: str, root: Path, calm: Path) -> None:
    """Ask again after a kill."""
    was_whole = is_whole(writer, root / PLACE)
    for sweeps in (True, False):
        other = root.with_name("other")
        shutil.copytree(root, other)
        parent = (other / PLACE).parent
        if sweeps and parent.exists():
            sweep(parent)
            assert set(os.listdir(parent)) <= {"it"}
            assert is_whole(writer, other / PLACE) == was_whole
        WRITERS[writer](other)
        assert is_whole("", other / PLACE)
        assert os.listdir(parent) == ["it"]
        assert content(other) == content(calm), content(other).keys() ^ content(calm).keys()
        shutil.rmtree(other)


def main(writer: str, folder: Path) -> None:
    kills = kill_at_each_change(folder, partial(prepare, writer), WRITERS[writer], partial(check, writer))
    sys.stdout.write(str(kills))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
